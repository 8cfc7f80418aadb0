"""Faults of learning from demonstrations: what the encoder is shown, whether it learns, whether anything listens to it.

COMMANDS are judged by the rules (test_mutations), FAULTS by probes (test_deep_mutations).
"""

from __future__ import annotations

from tests.verification.mutations import faults

FILES = {
    "MODEL": "models/recursive_reasoning/etrm.py",
    "ONLINE": "models/recursive_reasoning/etrm_online.py",
    "BASE": "models/encoders/base.py",
    "PAIRS": "models/encoders/pairs.py",
    "AGGREGATION": "models/encoders/aggregation.py",
    "VARIATIONAL": "models/encoders/variational.py",
    "LATENT": "models/encoders/latent.py",
    "RECURRENT": "models/encoders/kinds/recurrent.py",
    "LOSS": "losses/act.py",
    "BUILD": "tasks/etrm/build.py",
    "TASK": "tasks/etrm/task.py",
    "DECODER": "tasks/etrm/decoder.py",
    "DATA": "dataset/fewshot.py",
}
SMALL = "python pretrain_etrm.py --config-name=cfg_pretrain_etrm_overfit device=cpu"

COMMANDS = faults(
    r"""
etrm-recipe-of-trm | SCR111 SCR112 DAT510 (JOB030 CFG252) | an encoder was meant, the recipe is that of puzzle embeddings | python pretrain_etrm.py --config-name=cfg_pretrain_arc_agi_1
etrm-script-of-trm | SCR111 SCR112 DAT510 (JOB030) | the recipe with an encoder is started by the script of puzzle embeddings | python pretrain.py --config-name=cfg_pretrain_etrm_arc_agi_1
etrm-arch-of-trm | SCR112 (CFG252) | the recipe's architecture is replaced by one without an encoder | python pretrain_etrm.py arch=trm
etrm-arch-in-trm-script | SCR112 | an architecture with an encoder in the script of puzzle embeddings | python pretrain.py arch=etrm
etrm-recipe-retired | JOB021 (JOB020) | the recipe of the public code's recurrent encoder | python pretrain_etrm.py --config-name=cfg_pretrain_etrmtrm_arc_agi_1
etrm-data-of-trm | DAT510 | data without demonstrations for an encoder | python pretrain_etrm.py data_paths=[data/arc1concept-aug-1000]
etrm-data-in-trm-script | DAT510 | data with demonstrations for puzzle embeddings | python pretrain.py --config-name=cfg_pretrain_arc_agi_1 data_paths=[data/arc1concept-encoder-aug-1000]
etrm-script-renamed | JOB010 | the script of the recurrent encoder, which is a value of arch.encoder_type now | python pretrain_etrmtrm.py
etrm-arch-renamed | JOB021 JOB030 CFG210 | the architecture of the recurrent encoder, the same | python pretrain_etrm.py arch=etrmtrm
etrm-key-of-the-loss | JOB030 | the weight of the KL where it is not looked for | python pretrain_etrm.py arch.kl_weight=1e-3
etrm-key-that-was-dropped | JOB030 | the key of the latent's width under its published name | python pretrain_etrm.py arch.lpn_latent_dim=512
etrm-steps-of-the-other-mode | JOB030 | a fixed number of steps for the dynamic architecture | python pretrain_etrm.py arch.num_act_steps=4
etrm-exploration-in-fixed-mode | JOB030 | exploration where no row halts early | python pretrain_etrm.py arch=etrm_online arch.halt_exploration_prob=0.5
etrm-width-of-no-latent | WARN JOB031 | a width for the latent of an encoder that has none | python pretrain_etrm.py arch.latent_dim=64
etrm-weight-of-no-latent | WARN JOB031 | a weight for the KL of an encoder that has none | python pretrain_etrm.py arch.loss.kl_weight=1e-3
etrm-queries-of-a-mean | WARN JOB031 | a start for queries that the mean does not have | python pretrain_etrm.py arch.query_init=0.02
etrm-unknown-encoder | CFG252 | an encoder that is not one of ours | python pretrain_etrm.py arch.encoder_type=lpn_var
etrm-latent-without-prior | WARN CFG252 | a latent is sampled, and nothing keeps it near its prior | python pretrain_etrm.py arch.encoder_type=lpn_variational arch.loss.kl_weight=0
etrm-nothing-trained | JOB030 | encoder and decoder are frozen at once | python pretrain_etrm.py freeze_encoder_steps=100 freeze_decoder_steps=100
etrm-rate-of-zero | CFG251 | no learning rate | python pretrain_etrm.py lr=0
etrm-one-step | CFG230 | dynamic halting with a single step | python pretrain_etrm.py arch.halt_max_steps=1
etrm-warm-up-only | WARN CFG250 | the semi-final's length with the warm-up of the long run | python pretrain_etrm.py epochs=1000 eval_interval=200
etrm-decoder-missing | WARN JOB033 | the decoder to begin with is not there | python pretrain_etrm.py load_pretrained_decoder=checkpoints/nothing
etrm-name-of-another-encoder | WARN JOB032 | the run is named after another encoder | python pretrain_etrm.py run_name=F2_hybrid_variational arch.encoder_type=hybrid_standard
etrm-name-of-another-encoder-in-short | WARN JOB032 | the same, shortened | python pretrain_etrm.py run_name=hybrid_var_1
etrm-intent-act | JOB034 | dynamic halting was meant, the architecture has fixed steps | python pretrain_etrm.py arch=etrm_online | mode=encoder act=dynamic
etrm-intent-encoder | JOB034 | another encoder was meant | python pretrain_etrm.py | encoder=hybrid_standard
etrm-intent-cache | JOB034 | an encoding for all steps was meant, the model encodes at each one | python pretrain_etrm.py | cache=cache_first_step
etrm-intent-data | JOB034 | data without demonstrations were meant | python pretrain_etrm.py | data=embedding
etrm-intent-mode | JOB034 | puzzle embeddings were meant | python pretrain_etrm.py | mode=embedding
etrm-intent-clean | DAT530 | from scratch was meant, a decoder is loaded | python pretrain_etrm.py load_pretrained_decoder=checkpoints/nothing | init=scratch
etrm-intent-contaminated | DAT530 | a contaminated decoder was meant, none is loaded | python pretrain_etrm.py | init=contaminated
"""
)

# --- the encoder learns -----------------------------------------------------------------------------------------------

LEARNS = faults(
    r"""
etrm-detached | MOD432 DYN703 | the context is detached before the decoder reads it
  MODEL | x = {_CONTEXT: encoded.context, _CELLS => x = {_CONTEXT: encoded.context.detach(), _CELLS
etrm-no-grad | MOD432 DYN703 | the encoder runs under no_grad
  MODEL
  -         encoded: EncoderOutput = self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
  +         with torch.no_grad():
  +             encoded: EncoderOutput = self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
etrm-recurrent-state-detached | MOD432 DYN703 | a recurrent encoder's context is taken from its detached state | + arch.encoder_type=recurrent
  RECURRENT | rms_norm(context + values["encoder_H"], => rms_norm(context + values["encoder_H"].detach(),
etrm-recurrent-no-grad | MOD432 DYN703 | the gradient window of a recurrent encoder holds no update | + arch.encoder_type=recurrent
  RECURRENT | self.window = config.L_cycles + 1 => self.window = 0
etrm-cached | MOD431 DYN701 | the demonstrations are encoded at the first step of the run alone
  MODEL
  -         encoded: EncoderOutput = self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
  +         self.kept = encoded = getattr(self, 'kept', None) or self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
etrm-cached-for-episode | MOD431 DYN702 DYN704 | rows that continue keep the context of their first step, without a gradient: only fresh rows train the encoder
  MODEL
            encoded: EncoderOutput = self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
  +         if self.training and getattr(self, "halted", None) is not None:
  +             encoded.context = torch.where(self.halted[:, None, None], encoded.context, self.kept)
  +         self.kept = encoded.context.detach()
  MODEL
  +
  +     def _forward_train_original(self, batch, carry):
  +         self.inner.halted = None if carry is None else carry.halted
  +         return super()._forward_train_original(batch, carry)
etrm-stale-context | DYN704 | every step works with the context that the step before has made
  MODEL
            encoded: EncoderOutput = self.encoder(demo_inputs, demo_labels, demo_mask, noise=data.get("noise"))
  +         if self.training and hasattr(self, "kept"):
  +             encoded.context = encoded.context + (self.kept - encoded.context).detach()
  +         self.kept = encoded.context.detach()
etrm-fixed-steps-after-first | DYN702 | in fixed mode only the first step gives the encoder a gradient | + arch=etrm_online
  ONLINE
                    latents, aux = self.inner.recur(latents, x)
  +                 x = {**x, "context": x["context"].detach()}
etrm-fixed-encodes-each-step | MOD430 DYN701 | in fixed mode the demonstrations are encoded at every step | + arch=etrm_online
  ONLINE
                for _ in range(self.num_act_steps):
  +                 x = self.inner.embed(data)
etrm-fixed-steps-capped | DYN708 MOD422 | in fixed mode two steps at most, whatever num_act_steps says | + arch=etrm_online
  ONLINE | self.num_act_steps = self.halt_max_steps = config.num_act_steps => self.num_act_steps = self.halt_max_steps = min(config.num_act_steps, 2)
etrm-group-without-encoder | MOD460 DYN703 | no optimizer group holds the encoder
  MODEL | return {"encoder": encoder, "trunk" => return {"trunk"
etrm-rate-not-applied | CFG255 | encoder_lr_scale reaches no optimizer
  BUILD
  -         scales={"encoder": config.encoder_lr_scale},
etrm-not-frozen | DYN713 | freeze_encoder_steps is handed on under a name that no group has
  BUILD
  -         frozen={"encoder": config.freeze_encoder_steps, "trunk": config.freeze_decoder_steps},
  +         frozen={"encoder": 0, "trunk": config.freeze_decoder_steps},
etrm-frozen-decays | DYN713 | a frozen group gets no gradient, and its decay moves it on
  TASK | if self._step <= until for => if self._step < 0 for
etrm-frozen-for-ever | DYN713 | what is frozen at the start never moves again
  TASK | if self._step <= until for => if until for
etrm-frozen-other-part | DYN713 | freeze_encoder_steps freezes the decoder, and the other way round
  BUILD | "encoder": config.freeze_encoder_steps, "trunk": config.freeze_decoder_steps => "encoder": config.freeze_decoder_steps, "trunk": config.freeze_encoder_steps
""",
    job=SMALL,
    files=FILES,
)

# --- demonstrations are a set, and answers depend on them -------------------------------------------------------------

LISTENS = faults(
    r"""
etrm-order-counts | DYN710 | each demonstration is told its place
  PAIRS | return out.view(*demo_mask.shape, -1) => return out.view(*demo_mask.shape, -1) * (1 + torch.arange(demo_mask.shape[1])[:, None])
etrm-empty-places-encoded | DYN710 | places without a demonstration are encoded like one
  PAIRS | return tokens, demo_mask.flatten() & (tokens != self.pad_id).any(dim=1) => return tokens, torch.ones_like(demo_mask.flatten())
  AGGREGATION | weight = mask.unsqueeze(-1).to(vectors.dtype) => weight = torch.ones_like(mask).unsqueeze(-1).to(vectors.dtype)
etrm-empty-places-in-the-mean | DYN710 | the mean over demonstrations counts places that hold none | + arch.encoder_type=hybrid_standard
  AGGREGATION
                vectors = layer(vectors, None, keys)
  -         return masked_mean(vectors, mask).unsqueeze(1)
  +         return vectors.mean(1).unsqueeze(1)
etrm-empty-places-in-the-kl | DYN710 | the KL of a task is divided by all places for demonstrations | + arch.encoder_type=lpn_variational
  VARIATIONAL | kl = masked_mean(kl_divergence(mu, logvar).unsqueeze(-1), mask).squeeze(-1) => kl = kl_divergence(mu, logvar).mean(1)
etrm-mask-ignored | DYN710 | demonstrations that are masked are encoded
  PAIRS | return tokens, demo_mask.flatten() & (tokens => return tokens, (tokens
  AGGREGATION | weight = mask.unsqueeze(-1).to(vectors.dtype) => weight = torch.ones_like(mask).unsqueeze(-1).to(vectors.dtype)
etrm-padding-attended | DYN710 | attention of the encoder reads padding
  PAIRS | h = layer(h, rope, keys) => h = layer(h, rope, None)
etrm-context-ignored | DYN711 DYN703 | the decoder multiplies the context by zero
  MODEL | self._scaled(context).to(cells.dtype) => (0 * self._scaled(context)).to(cells.dtype)
etrm-context-of-the-neighbour | DYN711 | every row gets the context of the row before
  MODEL | x = {_CONTEXT: encoded.context, _CELLS => x = {_CONTEXT: encoded.context.roll(1, 0), _CELLS
etrm-demonstrations-not-swapped | DYN705 | a slot that is done takes the next question and keeps the demonstrations
  MODEL
  +
  +     def _reset_halted(self, batch, carry):
  +         latents, steps, data = super()._reset_halted(batch, carry)
  +         kept = DEMONSTRATIONS if carry is not None else ()
  +         return latents, steps, {**data, **{name: carry.data[name] for name in kept}}
etrm-encoder-type-ignored | DYN716 | every config gets the standard encoder | + arch.encoder_type=recurrent
  MODEL | encoder_class(config.encoder_type) => encoder_class("standard")
etrm-aggregation-ignored | DYN716 | arch.aggregation is read, and the encoder's own is taken | + arch.aggregation=cross_attention
  BASE | self.aggregation = config.aggregation or self.AGGREGATION => self.aggregation = self.AGGREGATION or config.aggregation
etrm-gain-not-applied | DYN703 | the learned scale of the context multiplies nothing | + arch.context_scale=learned
  MODEL | return context if self.context_gain is None else context * self.context_gain.to(context.dtype) => return context
etrm-identifier-read | DYN718 | the identifier of the puzzle is part of the input
  MODEL | self.embed_cells(data["inputs"])} => self.embed_cells(data["inputs"]) + data["puzzle_identifiers"][:, None, None].sin()}
etrm-table-of-puzzles | DYN718 | a parameter has a row for each puzzle
  MODEL
            self.context_scale = config.context_scale
  +         self.table = nn.Parameter(torch.zeros(shape.num_puzzle_identifiers, 1))
""",
    job=SMALL,
    files=FILES,
)

# --- latents ----------------------------------------------------------------------------------------------------------

LATENTS = faults(
    r"""
etrm-kl-left-out | DYN714 | the KL is reported and not added to the loss | + arch.encoder_type=hybrid_variational
  LOSS | total = total + self.kl_weight * terms["kl"] => total = total + 0 * terms["kl"]
etrm-kl-sign | DYN714 | the posterior is pushed away from its prior | + arch.encoder_type=hybrid_variational
  LOSS | total = total + self.kl_weight * terms["kl"] => total = total - self.kl_weight * terms["kl"]
etrm-kl-mean-of-pieces | DYN714 | the KL is a mean where all else is a sum: its weight depends on batch, accumulation and ranks | + arch.encoder_type=hybrid_variational
  LOSS | terms["kl"] = kl.sum() => terms["kl"] = kl.mean()
etrm-kl-sum-of-the-batch | DYN714 | the KL of each row is counted once for every row of the batch | + arch.encoder_type=hybrid_variational
  LOSS | total = total + self.kl_weight * terms["kl"] => total = total + self.kl_weight * labels.shape[0] * terms["kl"]
etrm-kl-of-one-step | DYN714 | in fixed mode the KL counts at one of the steps only | + arch=etrm_online arch.encoder_type=hybrid_variational
  ONLINE | aux["kl"].repeat(self.num_act_steps) => aux["kl"]
etrm-kl-formula | DYN714 | the logarithm of the variance has the wrong sign in the KL | + arch.encoder_type=hybrid_variational
  LATENT | - 1.0 - logvar) => - 1.0 + logvar)
etrm-never-sampled | DYN714 | training decodes the mean of the latent: the KL regularizes what is never drawn | + arch.encoder_type=lpn_variational
  VARIATIONAL | sample(centre, variance, noise) if self.training else centre => sample(centre, 0 * variance, noise) if self.training else centre
etrm-sampled-in-evaluation | DYN709 | an evaluation decodes a sample of the latent | + arch.encoder_type=hybrid_variational
  VARIATIONAL | sample(centre, variance, noise) if self.training else centre => sample(centre, variance, noise)
""",
    job=SMALL,
    files=FILES,
)

# --- data, slots, a loaded decoder ------------------------------------------------------------------------------------

SHOWN = faults(
    r"""
etrm-answer-shown | DYN712 | the pair that is asked is among those that are shown
  DATA
  -         candidate = (pair < np.where(any_pair, sizes, demos)[:, None]) & (pair != asked[:, None])
  +         candidate = (pair < np.where(any_pair, sizes, demos)[:, None])
etrm-answer-in-the-demonstrations | DYN712 | the labels of the question are encoded with the demonstrations
  MODEL
            demo_inputs, demo_labels, demo_mask = (data[name] for name in DEMONSTRATIONS)
  +         answer = data["labels"][:, None].expand_as(demo_labels)
  +         demo_labels = torch.where(answer > 6, answer, demo_labels)
etrm-answer-shown-in-evaluation | DYN712 | an evaluation shows the test beside the demonstrations
  DATA
  -         return self.batch_with(examples, self.demonstrations(examples))
  +         shown = self.demonstrations(examples)
  +         shown[:, 0] = examples
  +         return self.batch_with(examples, shown)
etrm-foreign-demonstrations | DYN711 | demonstrations of the next puzzle are shown
  DATA | shown = np.where(np.take_along_axis(kept, chosen, axis=1), first[:, None] + chosen, -1) => shown = np.where(np.take_along_axis(kept, chosen, axis=1), first[:, None] + chosen, -1)[::-1].copy()
etrm-no-demonstrations-in-evaluation | DYN711 | an evaluation shows the first demonstration only
  DATA | place < self.num_demos[puzzles][:, None], shown => place < 1, shown
etrm-trains-on-tests | SCR122 | the tasks of the test split are trained on
  BUILD | few_shot(load_splits(folders, "train")) => few_shot(load_splits(folders, "test"))
etrm-slot-not-refilled | DYN705 | a slot that is done is offered a blank row
  TASK
  -         if fresh.any():
  +         if fresh.all():
etrm-slot-repeats | DYN705 | a slot that is done gets the same example again
  TASK
  -         self._taken[cut] += fresh
  +         self._taken[cut] += 0 * fresh
etrm-slot-skips | DYN705 | every step takes an example from every stream: those of busy slots are lost
  TASK
  -         self._taken[cut] += fresh
  +         self._taken[cut] += 1
etrm-policy-ignored | CFG255 | query_policy reaches no sampler
  BUILD | showing=config.showing() => showing=None
etrm-groups-ignored | CFG255 | max_train_groups leaves no group out
  BUILD | held_back=_not_trained(train, held_back, config.max_train_groups) => held_back=held_back.groups
etrm-ranks-share-slots | DYN717 | every rank takes the streams of the first slots
  TASK
  -             slots = np.arange(low, high)[fresh]
  +             slots = np.arange(high - low)[fresh]
etrm-decoder-in-part | DYN715 | the answer head of a loaded decoder is left out
  DECODER | "inner.puzzle_emb.", "inner.context_gain") => "inner.puzzle_emb.", "inner.context_gain", "inner.lm_head")
etrm-decoder-with-encoder | DYN715 | loading a decoder takes the encoder of that run, too
  DECODER
  -     others = ("inner.encoder.", "inner.puzzle_emb.", "inner.context_gain")
  +     others = ("inner.puzzle_emb.", "inner.context_gain")
etrm-decoder-never-loaded | DYN715 | load_pretrained_decoder is checked and described, and nothing is loaded
  BUILD | start=None if decoder is None else decoder.load => start=None
""",
    job=SMALL,
    files=FILES,
)

FAULTS = (*LEARNS, *LISTENS, *LATENTS, *SHOWN)
