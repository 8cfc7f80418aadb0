# ruff: noqa: E501
"""The table of all codes: what holds if a check passes, the symptom of a fault, why it matters, the fix.

docs/verification.md is generated from it (`python -m verification.codes`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Code:
    """One row of the table. `title`: what holds if the check passes."""

    code: str
    step: str
    title: str
    symptom: str
    why: str
    fix: str


def _rows(text: str) -> dict[str, Code]:
    table = {}
    for line in text.strip().splitlines():
        row = Code(*[cell.strip() for cell in line.split("|")])
        if row.code in table:
            raise ValueError(f"code {row.code} appears twice")
        table[row.code] = row
    return table


# code | step | what holds | symptom | why it matters | fix
CODES = _rows("""
JOB001 | 1 | every line of a job file is a comment, blank or a job | a runner skips the line | the run never happens and nobody notices | write `[ ] COMMAND`, or start the line with #
JOB002 | 1 | no job appears twice, no running mark is stale | a job runs twice, or never | duplicate runs waste time, and one hides the results of the other | give each job its own run_name; set a stale [-] back to [ ]
JOB010 | 1 | the script exists at the root of the repository | `can't open file` | the job cannot start | name an existing script
JOB011 | 1 | the script's name has no suffix such as _old or _backup | an outdated script is run | it trains with unmaintained code | use the current script
JOB012 | 1 | the number of processes divides the batch size | exit 2 after the ranks have started, or ranks that wait forever | the launch is refused after hours in a queue | change --nproc-per-node, global_batch_size or accumulation
JOB020 | 1 | the config that the job names exists | `there is no config` | the job cannot start | name an existing config/cfg_*.yaml
JOB021 | 1 | the config is neither retired nor a backup copy | an outdated approach is trained | its results are compared with those of the current one | use the successor that config/REMOVED.txt names
JOB030 | 1 | the overrides compose and fit the strict schema | exit 2 with one line | with an invalid key or value the run would use another setting, so the launch refuses it | do what the message suggests
JOB031 | 1 | every override has an effect | two runs give the same numbers | the sweep over that key compares a run with itself | drop the override, or enable what uses it
JOB032 | 1 | run names are unique and match the values | one run resumes or replaces another, or tables are mislabelled | results are attributed to the wrong setting | rename the run
JOB033 | 1 | files and folders named by overrides exist | a failure after the start, or the wrong kind of data | the run cannot start | build the data, or correct the path
JOB034 | 1 | the command does what the stated intent says | the run does something unintended | every other fault leads to this one | change the command, or the `#@ intent:` line
SCR110 | 2 | the script has one @hydra.main whose config exists | Hydra finds no config | the script cannot start | set config_path and config_name
SCR111 | 2 | the job's config belongs to this script | training runs with the wrong behaviour | the guide's first pitfall: script and config belong to different approaches | run the script that the config names, or use another --config-name
SCR112 | 2 | family and data mode of the architecture match the script | a model gets input that it was not designed for | it trains without an error on the wrong input | use an arch of the script's family
SCR120 | 2 | the script wires config, model and run in the contract's order | a hard-coded model, or defaults instead of the config | the config describes one run, the code does another | load_synced_config, then create_model over engine.registry.resolve, then run
SCR121 | 2 | the script loads data set classes of its data mode | the encoder is not used, or gets no demonstrations | the wrong approach is trained | load the data set class of the script's mode
SCR122 | 2 | training uses the training split, evaluation the test split | an accuracy that is too high, or on the wrong examples | the score measures memorisation, not reasoning | load the training split for training, the test split for evaluation
SCR130 | 2 | the training loop matches the declared ACT mode | the number of steps per example is not the intended one | dynamic halting needs one call per step and a stored carry, fixed steps a loop | store output.carry and call the model once per step, or declare the other mode
SCR131 | 2 | names of training functions match the mode | a reader reviews the wrong function | the guide's red flag | rename the function
SCR140 | 2 | comments do not describe the other mode | a reader is misled | a comment about the other mode often remains from an incomplete change | correct the comment or the code
SCR141 | 2 | no error is swallowed around data, model and evaluators | a run without evaluators or with a fallback model | the failure appears only later, as a missing number | catch only the intended error
CFG210 | 3 | the config chooses an architecture that exists | `arch config not found` | the guide's second pitfall | set `- arch: NAME` in the defaults list
CFG211 | 3 | the recipe's own values win over those of the arch file | the recipe's arch block has no effect | the run has the arch file's size and cycles | put _self_ after arch in the defaults list
CFG220 | 3 | each arch value can be traced along the chain | a value comes from an unexpected file | the last file wins without notice | set the value in the right file
CFG230 | 3 | the halting parameters of the mode are set and sensible | rows never or always halt | without exploration the halting head is never tested | set arch.halt_exploration_prob in [0, 1] and arch.halt_max_steps > 1
CFG231 | 3 | the exploration probability is the published one | results differ from the published ones | exploration changes the number of steps per example | state it in the intent, or set it to 0.1
CFG240 | 3 | every evaluator exists and uses its keys | exit 2, or metrics that never appear | a run without its evaluation has to be repeated | correct module@Class under evaluators/
CFG250 | 3 | the warm-up ends well before the run does | the learning rate never reaches its peak | the run is trained at a fraction of its learning rate | shorten the warm-up, or train longer
CFG251 | 3 | at least one optimizer group has parameters to train | the loss does not change | the run trains nothing | unfreeze, or give the group a learning rate above 0
CFG252 | 3 | variational encoders, and only they, have a KL weight | sampling noise without a prior | latent spaces collapse or drift | set arch.loss.kl_weight
CFG253 | 3 | a loaded decoder keeps the shape and cycles of its training | decoder weights used at another depth | the pretrained part computes something else | use the cycles of the decoder's config
CFG254 | 3 | final metrics use the whole test split | accuracy of a subset is reported | not comparable with published figures | set final_eval_max_examples=null
CFG255 | 3 | every key of the script's schema is read somewhere | changing the key changes nothing | the setting looks configurable but is not | read the key and hand its value on where the run is built, or drop it from the schema
CFG256 | 3 | the learning-rate schedule ends with the run | the learning rate never reaches min_lr, or stays there too long | a truncated schedule is another schedule | set lr_decay_iters to max_iters
ARC310 | 4 | arch.name has the form package.module@Class | `is not of the form module@Class` | nothing can be resolved | write e.g. recursive_reasoning.trm@TRM
ARC311 | 4 | the module that arch.name names exists | ModuleNotFoundError | the guide's third pitfall | correct the name, or move the file
ARC312 | 4 | the module defines or re-exports the class | `has no class` | the guide's third pitfall | correct the class, or export it
ARC313 | 4 | neither module nor class is a backup copy | old code is trained | the tests do not cover it | name the current module
ARC314 | 4 | the loss exists and supports the loss_type | exit 2, or another loss | losses differ in scale and in their optimum | correct arch.loss
ARC320 | 4 | the halting keys of the arch file match the class's ACT mode | keys of the other mode are ignored | the file says fixed steps, but the model halts | use the keys of the class's mode
ARC321 | 4 | the arch file of a dynamic model sets halt_exploration_prob | the default is used silently | the guide's red flag: the exploration was not chosen on purpose | add halt_exploration_prob to the arch file
ARC330 | 4 | arch keys match the fields of the model's config and are used | a key without effect | sweeps over it compare a run with itself | correct or drop the key
ARC340 | 4 | the manager's goals are used, weighted and scored as intended | feudal loss missing, always 0, or followed for one window only | an ablation compares other settings than its table says | change the key that the message names, or declare it in the intent (`manager=none`, `injection=false`, `period=8`, `feudal_weight=0.2`)
MOD410 | 5 | the class is a module with forward(batch, carry) | the trainer cannot call it | the class has the right name but is something else | name the model class
MOD420 | 5 | forward branches on self.training into _forward_train_* and _forward_eval* | evaluation behaves like training, or the reverse | with one method for both, exploration can go unnoticed in evaluation | branch on self.training
MOD421 | 5 | the training method's name, its body and ACT_MODE agree on the mode | fixed steps where halting was intended, or the reverse | the guide's central failure: the run works but is another experiment | use the method of the intended mode
MOD422 | 5 | the model runs the steps and cycles of the arch block | a deeper config computes the same as a shallow one | sweeps over depth compare a run with itself | use the numbers of the config in the loops
MOD430 | 5 | the input of each row is encoded in a known way | stale or missing context | which parts get gradients depends on whether the encoder runs at each step | encode in the training method
MOD431 | 5 | a dynamic model encodes at every step | rows continue with an outdated encoding | the encoder gets gradients only at the first step | encode unconditionally
MOD432 | 5 | the encoding keeps its gradient | the embedding or encoder never changes | the part that should learn the task is frozen | no detach or no_grad between encoding and use
MOD440 | 5 | the carry is complete, updated, stored and passed on | every step starts afresh | halting, deep supervision and depth are lost without an error | return the new state and pass it to the next step
MOD441 | 5 | labels belong to the example in the row | the loss compares with another example's answer | training converges to noise | take labels from the carry
MOD450 | 5 | evaluation has no exploration and the same depth for all rows | metrics that change from run to run | results cannot be compared | no exploration or sampling in evaluation
MOD460 | 5 | the task passes the loss its declared inputs and trains every parameter group | a part without an optimizer | it stays at its random initialisation | list every parameter in a ParamGroup
SUM600 | 6 | script, task, loop and model form one mode | parts of different modes | parts that are right individually can be wrong together | see the failed steps
DAT510 | data | the data have the data mode of the script | embedding data for an encoder, or the reverse | the guide's fourth pitfall | point data_paths (dataset, dataset_list) to data of the mode
DAT511 | data | the data path's name agrees with the mode | a misleading name | the next reader assumes the other kind | rename the folder
DAT520 | data | train and test share no example | an accuracy that is too high | the score measures memorisation, not reasoning | rebuild the data
DAT521 | data | train and test share no solution | an accuracy that is too high | a model may recall the answer | rebuild with disjoint solutions
DAT522 | data | every test puzzle has its query in the test split | missing puzzles are not counted | the score covers only a subset | rebuild the data
DAT523 | data | counts, tokens and lengths agree with dataset.json | index errors on the device, or silent truncation | the model reads wrong symbols | rebuild the data
DAT530 | data | a pretrained part never saw the test puzzles | an accuracy that is too high | its training included the answers | use a clean decoder, or state init=contaminated
DAT540 | data | pretrained weights get the tokens they were trained with | the loss starts far above that of random weights | ids of one vocabulary are read as tokens of another | build the data with --tokenizer gpt2
DAT541 | data | the data sets of a mixture share a vocabulary, or each has its own embedding | one id stands for two tokens | what one data set teaches about an id, the other overwrites | add multidataset_wte=true, or build both with one tokenizer
DAT542 | data | aligned streams annotate one text, position by position | exit 2, or labels of the wrong positions | streams of different texts say nothing about each other | build them from the same file
CKP610 | data | the run's command still composes to its stored config | the same command would train something else | the run cannot be reproduced by its command | keep the recipe, or note the change
CKP611 | data | the run's path signature matches the current code | the checkpoint is read by other code | another model is evaluated | check out the run's commit
CKP612 | data | the checkpoint's tensors match the model | missing or unexpected keys | a part keeps its random initialisation | load with the code that wrote it
CKP613 | data | the checkpoint's step lies within the run | a schedule beyond its end | the learning rates are those of another run | resume with the run's own config
DOC810 | doc | every documented command is valid and verifies | a reader's first command fails | documented commands are the first that people run | fix the page
VER900 | 6 | every check could be carried out | the verifier itself failed | a check that was not carried out proves nothing | report it with the message
DYN700 | dyn | the config's model and loss can be built | exit 2 or a traceback at launch | nothing else can be observed | fix the arch block
DYN701 | dyn | the input of every row is encoded at each step | stale encodings | encoders get gradients only at the first step | embed (encode) carry.data unconditionally in the training method
DYN702 | dyn | gradients reach the encoding of every row | rows that teach nothing | deep supervision is lost | no detach, no_grad or torch.where between the embedding (encoding) of a row and its use
DYN703 | dyn | every parameter gets a gradient and has exactly one optimizer group | parameters that never change | part of the network is noise | list every parameter in exactly one ParamGroup, and let the loss depend on it inside the gradient window
DYN704 | dyn | continuing rows use the encoding of the current weights | outdated encodings | gradients belong to a network that no longer exists | encode again at each step
DYN705 | dyn | the carry persists for rows that continue and is reset for rows that halted | every step starts afresh, or examples leak | depth is lost, or two examples mix | store output.carry in the task, give it to the next forward, and choose row by row with carry.halted
DYN706 | dyn | the loss uses the labels of the row's own example | a loss against another example | training converges to noise | take labels from output.carry.data, not from the incoming batch
DYN707 | dyn | halting follows q values, exploration and halt_max_steps | rows halt too early, or never | the number of steps per example is not the intended one | halt where (q decides it or steps >= halt_max_steps) and steps >= the explored minimum; in an evaluation always at halt_max_steps
DYN708 | dyn | a fixed model takes its number of steps for each batch | a different depth | the run is another experiment | loop num_act_steps times
DYN709 | dyn | evaluation is deterministic | metrics change from run to run | results cannot be compared | no sampling, dropout or exploration in an evaluation; a variational encoder uses its mean
DYN710 | dyn | the encoder treats demonstrations as a set and ignores padding | order or padding changes the answer | artefacts are learned | mask and aggregate symmetrically
DYN711 | dyn | the context changes the answer | the context is not used | the model cannot know its task | feed the context to the trunk
DYN712 | dyn | logits do not depend on labels | perfect training accuracy | the answer is in the input | keep labels out of the model's inputs; only the loss may read carry.data['labels']
DYN713 | dyn | staged training trains what it declares | frozen parts move, or nothing does | stages are not what the paper describes | one optimizer per stage
DYN714 | dyn | the KL term has its documented weight | the objective is different | losses are not comparable | fix the factor
DYN715 | dyn | decoder weights are loaded exactly | the decoder is random | pretraining has no effect | map every key, refuse unknown ones
DYN716 | dyn | each overridden key changes the model or its outputs | a dead override | two runs are the same run | drop the override, or enable what uses it
DYN717 | dyn | two ranks compute what one process does | results depend on the number of ranks | runs on other machines cannot be compared | split the global batch by rank (engine.distributed.local_rows), draw random numbers of the global batch, and return (summed loss, rows) from the task
DYN718 | dyn | exactly the embedding rows of the batch change | rows change without being used | puzzles forget | look rows up by puzzle_identifiers of the row's own example, and update the touched rows only
""")

OBSERVED = tuple(code for code in CODES if code.startswith(("MOD4", "SCR12", "SCR13", "SCR14")) and code != "MOD410")
"""The guide's requirements on behaviour, observed on a tiny instance."""
ALSO_OBSERVED = ("SCR112", "CFG240", "CFG255", "ARC340", "DYN706", "DYN707", "DYN712")
"""Codes that rules or the deeper probes judge, too: an observation only adds its failures."""
DEEP = tuple(code for code in CODES if code.startswith("DYN"))
"""Codes of the deeper probes; each family has probes for some of them."""


PAGE = re.compile(r"(<!-- table: codes -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    """The Markdown table of docs/verification.md."""
    lines = ["| code | what holds | symptom | why it matters | fix |", "|---|---|---|---|---|"]
    lines += [f"| {row.code} | {row.title} | {row.symptom} | {row.why} | {row.fix} |" for row in CODES.values()]
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """`page` with its table of codes generated again."""
    return PAGE.sub(lambda match: match[1] + table() + match[2], page)


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[1] / "docs/verification.md"
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
