"""The flags of train.py under the name that the guide gives them: tasks/language_model/args.py declares them.

Optimizers and schedules with their options are the files of config/optimizer and config/lr_scheduler;
`python train.py --help` lists all of it.
"""

from tasks.language_model.args import TrainConfig as TrainConfig
