"""The flags of train.py under the name that the guide gives them: tasks/language_model/args.py declares them."""

from tasks.language_model.args import TrainConfig as TrainConfig
