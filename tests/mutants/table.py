"""The mutants: a wrong change of one place each, and the tests that must notice it."""

from dataclasses import dataclass

VALUES = "tests/vla_jax/training/test_values_through_the_step.py"
STEP = "tests/vla_jax/training/test_step.py"
LOOP = "tests/vla_jax/training/test_loop.py"
NORMALISER_OF_A_RUN = "tests/vla_jax/training/test_normaliser_of_a_run.py"
OPTIMIZER = "tests/vla_jax/training/test_optimizer.py"
EMA = "tests/vla_jax/training/test_ema.py"
REFERENCE_STEPS = "tests/vla_jax/models/test_training_steps.py"
NETWORK = "tests/vla_jax/policy/test_network.py"
POLICY = "tests/vla_jax/policy/test_insertion_policy.py"
DIFFUSION = "tests/vla_jax/heads/test_diffusion.py"
PREFIX = "tests/vla_jax/heads/test_prefix.py"
FLOW_PATH = "tests/vla_jax/diffusion/test_flow_path.py"
GUIDANCE = "tests/vla_jax/diffusion/test_guidance.py"
CHUNKS = "tests/vla_jax/policy/test_chunk_execution.py"
SCHEDULE = "tests/vla_jax/diffusion/test_schedule.py"
SAMPLERS = "tests/vla_jax/diffusion/test_samplers.py"
DROPOUT = "tests/vla_jax/models/test_dropout.py"
NORMALISER = "tests/vla_jax/preprocessing/test_normaliser.py"
PACKED = "tests/vla_jax/dataset/test_packed_dataset.py"
BATCHES = "tests/vla_jax/dataset/test_batches.py"
SPLIT = "tests/vla_jax/dataset/test_split.py"
STATE_WINDOWS = "tests/vla_jax/dataset/test_state_windows.py"
FEATURE_AGES = "tests/vla_jax/dataset/test_feature_ages.py"
STATISTICS = "tests/vla_jax/dataset/test_statistics.py"
TIMING = "tests/vla_jax/test_timing.py"
KEYS = "tests/feature_cache/test_keys.py"
POOLING = "tests/feature_cache/test_pooling.py"
STORE = "tests/feature_cache/test_store.py"
METRICS = "tests/vla_jax/evaluation/test_metrics.py"
DRIFT = "tests/vla_jax/evaluation/test_drift.py"
OPEN_LOOP = "tests/vla_jax/evaluation/test_open_loop.py"
CLOSED_LOOP = "tests/vla_jax/evaluation/test_closed_loop.py"
SAFETY = "tests/vla_jax/live/test_safety.py"
CLOCK = "tests/vla_jax/live/test_sender_clock.py"
ROWS = "tests/vla_jax/live/test_row_buffer.py"
TICKS = "tests/vla_jax/live/test_ticks.py"
WIRE = "tests/vla_jax/live/test_wire.py"
ROW_ORDER = "tests/vla_jax/live/test_row_order.py"
RECORDER = "tests/vla_jax/live/test_recorder.py"
ARM = "tests/experiments/phantom/lab/test_arm.py"
LIVE_LOOP = "tests/vla_jax/live/test_live_loop.py"
LEGACY = "tests/vla_jax/recordings/test_legacy.py"
MESSAGES = "tests/vla_jax/serving/test_messages.py"
REQUESTS = "tests/vla_jax/serving/test_requests.py"
BATCHING = "tests/vla_jax/serving/test_batching.py"
SERVICE = "tests/vla_jax/serving/test_service.py"
SERVER = "tests/vla_jax/serving/test_server.py"
ACCESS = "tests/vla_jax/serving/test_access.py"
CLIENT = "tests/vla_jax/test_client.py"
CONVERSION = "tests/vla_jax/reference/test_reference_policy.py"
CHECKPOINTS = "tests/vla_jax/training/test_checkpoint.py"
RESIDUAL = "tests/vla_jax/policy/test_residual.py"
RESIDUAL_TRAINING = "tests/vla_jax/training/test_residual_training.py"
BUNDLED = "tests/vla_jax/bundle/test_bundled_policies.py"
BUNDLE_FOLDER = "tests/vla_jax/bundle/test_bundle_folder.py"


@dataclass(frozen=True)
class Mutant:
    """One wrong change. old: text that stands in `file` once; tests: arguments of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, *rows: tuple[str, str, str, str]) -> list[Mutant]:
    """rows: name, old text, new text, test."""
    return [Mutant(name, file, old, new, (test,)) for name, old, new, test in rows]


WEIGHED = f"{VALUES}::test_a_sample_counts_by_its_confidence_and_by_the_sensor_that_is_read"
HIDDEN = f"{VALUES}::test_a_hidden_sensor_neither_counts_nor_is_read"
SHARE = f"{VALUES}::test_a_sensor_is_hidden_as_often_as_configured_and_anew_at_each_update"
NOISY = f"{VALUES}::test_noise_reaches_the_network"
DROPPING = f"{VALUES}::test_dropout_is_on_in_training_and_off_in_validation"
AVERAGED = f"{VALUES}::test_the_average_follows_the_new_parameters"
RATES = f"{VALUES}::test_each_group_moves_at_its_own_rate"
CLIPPED = f"{VALUES}::test_a_gradient_is_clipped_and_its_own_length_logged"
DECAYING = f"{VALUES}::test_kernels_decay_and_norms_and_biases_only_on_request"
ABSENT = f"{VALUES}::test_windows_that_are_absent_do_not_reach_the_gradient"
UNITS = f"{VALUES}::test_held_out_errors_are_in_recorded_units_and_the_loss_in_the_network_s"
HELD_OUT = f"{LOOP}::test_held_out_errors_are_those_of_evaluation"
PART_STEP = f"{STEP}::test_accumulation_gives_the_gradient_of_the_whole_batch"
ONE_STEP = f"{REFERENCE_STEPS}::test_three_steps_equal_the_reference[regression_concat]"
GATED_STEP = f"{REFERENCE_STEPS}::test_three_steps_equal_the_reference[regression_gated_z0]"
PADDED = f"{NETWORK}::test_predictions_do_not_depend_on_the_batch_or_on_padding[regression-concat]"
DRAWS = f"{DIFFUSION}::test_several_draws_are_of_noise_and_step_each"
SAMPLED = f"{DIFFUSION}::test_noise_and_samples_equal_the_reference[concat]"
OWN_NOISE = f"{DIFFUSION}::test_each_row_starts_from_noise_of_its_own_key"
COME_AND_GO = f"{PACKED}::test_an_episode_held_out_once_stays_so_when_others_come_and_go"

TRAINING = [
    *_of(
        "vla_jax/training/step.py",
        (
            "confidence left out of the weights",
            "        batch.confidence,\n",
            "        jnp.ones_like(batch.confidence),\n",
            WEIGHED,
        ),
        (
            "sensor weight left out",
            "sensor_loss_weight=config.sensor_loss_weight,",
            "sensor_loss_weight=1.0,",
            WEIGHED,
        ),
        (
            "weights not divided by their mean",
            "normalise=config.policy.head.normalises_weights,",
            "normalise=False,",
            WEIGHED,
        ),
        (
            "a sensor that is not read counts",
            "recorded.has_sensor if config.policy.uses_sensor else None,",
            "recorded.has_sensor,",
            WEIGHED,
        ),
        (
            "sensor dropout off",
            "recorded = hide_sensors(config, batch.observation, sensor_key)",
            "recorded = batch.observation",
            HIDDEN,
        ),
        ("sensor dropout turned round", "has_sensor & ~hidden", "has_sensor & hidden", SHARE),
        (
            "noise on inputs off",
            "observation = add_noise(config, preprocessor.observe(recorded), noise_key)",
            "observation = preprocessor.observe(recorded)",
            NOISY,
        ),
        (
            "noise on the sensor off",
            "if config.sensor_noise and sensor is not None:",
            "if False:",
            NOISY,
        ),
        (
            "noise on the features off",
            "if config.feature_noise and features is not None:",
            "if False:",
            NOISY,
        ),
        (
            "noise drawn for each row of a window",
            "per_channel = (sensor.shape[0], 1, sensor.shape[2])",
            "per_channel = sensor.shape",
            f"{STEP}::test_noise_is_one_draw_per_channel_of_a_window",
        ),
        (
            "the same draws at every update",
            "jax.random.split(jax.random.fold_in(root_key, state.step), 3)",
            "jax.random.split(root_key, 3)",
            SHARE,
        ),
        ("steps not counted", "step=state.step + 1,", "step=state.step,", SHARE),
        (
            "the average follows the old parameters",
            "update_ema(state.ema_params, params,",
            "update_ema(state.ema_params, state.params,",
            AVERAGED,
        ),
        (
            "accumulated gradients summed, not averaged",
            "lambda x: x / parts, (loss, gradient)",
            "lambda x: x, (loss, gradient)",
            PART_STEP,
        ),
        (
            "no dropout in training",
            "network.loss(*part, key=key, train=True)",
            "network.loss(*part, key=key, train=False)",
            DROPPING,
        ),
        (
            "BatchNorm's running statistics forgotten",
            "        statistics=statistics,\n",
            "        statistics=state.statistics,\n",
            ONE_STEP,
        ),
        (
            "length of the update logged as the gradient's",
            "optax.tree.norm(gradient)",
            "optax.tree.norm(updates)",
            CLIPPED,
        ),
        (
            "held-out errors in network units",
            "error = (sampled - batch.actions)",
            "error = (preprocessor.encode_actions(sampled) - preprocessor.encode_actions(batch.actions))",
            UNITS,
        ),
        (
            "copies that fill a batch up are judged",
            "error = (sampled - batch.actions) * valid[:, None, None]",
            "error = sampled - batch.actions",
            UNITS,
        ),
        (
            "one noise for all held-out samples in training",
            "row_keys(root_key, batch.tick)",
            "row_keys(root_key, 0 * batch.tick)",
            HELD_OUT,
        ),
        ("dropout in validation", "        train=False,\n", "        train=True,\n", DROPPING),
    ),
    *_of(
        "vla_jax/training/ema.py",
        (
            "the average without warm-up",
            "jnp.minimum(decay, (1.0 + step) / (10.0 + step))",
            "decay",
            AVERAGED,
        ),
    ),
    *_of(
        "vla_jax/training/optimizer.py",
        (
            "encoder in the expert's rate group",
            '"encoder" if leaf_name(path).startswith(ENCODER_PREFIX) else "expert"',
            '"expert"',
            RATES,
        ),
        (
            "both groups at the expert's rate",
            'config.sensor_lr if group == "encoder" else config.lr\n    if config.schedule',
            "config.lr\n    if config.schedule",
            RATES,
        ),
        ("clipping removed", "optax.clip_by_global_norm(config.clip_norm)", "optax.identity()", CLIPPED),
        (
            "norms and biases decayed",
            "mask=None if config.decay_everything else decay_mask,",
            "mask=None,",
            DECAYING,
        ),
        (
            "norms and biases never decayed",
            "mask=None if config.decay_everything else decay_mask,",
            "mask=decay_mask,",
            DECAYING,
        ),
        (
            "cosine holds its peak",
            '0.0 if config.schedule == "cosine" else config.hold_ratio',
            "config.hold_ratio",
            f"{OPTIMIZER}::test_cosine_has_no_hold_and_constant_no_shape",
        ),
    ),
    *_of(
        "vla_jax/training/compilation.py",
        (
            "validation on training episodes",
            '            "val",\n',
            '            "train",\n',
            HELD_OUT,
        ),
    ),
    *_of(
        "vla_jax/training/starting_point.py",
        (
            "feature moments over held-out episodes too",
            'ticks = features.sample_ticks("train")',
            'ticks = features.sample_ticks("all")',
            f"{NORMALISER_OF_A_RUN}::test_feature_moments_are_of_the_training_records_alone",
        ),
    ),
    *_of(
        "vla_jax/training/loop.py",
        (
            "a resumed run fits a new normaliser",
            '            announce(f"resuming at step {start.step} of {config.steps}")\n',
            "            fitted = new_start(config, optimizer, abstract, dataset, features, None, mesh).normaliser\n"
            '            start = type(start)(**{**vars(start), "normaliser": fitted})\n',
            f"{NORMALISER_OF_A_RUN}::test_a_resumed_run_keeps_its_normaliser_whatever_the_statistics_say_now",
        ),
    ),
    *_of(
        "vla_jax/training/validation.py",
        (
            "averaged and live weights mistaken for each other",
            "{VALIDATION: state.ema_params, LIVE_VALIDATION: state.params}",
            "{VALIDATION: state.params, LIVE_VALIDATION: state.ema_params}",
            HELD_OUT,
        ),
        (
            "held-out errors summed over dimensions",
            'totals["squared_error"].mean() / count',
            'totals["squared_error"].sum() / count',
            HELD_OUT,
        ),
    ),
]

NETWORKS = [
    *_of(
        "vla_jax/training/residual_samples.py",
        (
            "the first action of every chunk",
            "chunks[place[begun], ages]",
            "chunks[place[begun], 0 * ages]",
            f"{RESIDUAL_TRAINING}::test_a_chunk_of_so_many_ticks_ago_gives_its_action_of_that_number",
        ),
        (
            "chunks of other episodes",
            " & (episode[begun] == episode[ticks][:, None])",
            "",
            f"{RESIDUAL_TRAINING}::test_a_chunk_of_so_many_ticks_ago_gives_its_action_of_that_number",
        ),
    ),
    *_of(
        "vla_jax/policy/residual.py",
        (
            "corrections in the network's units",
            "return correction * normaliser.action_scale[None]",
            "return correction",
            f"{RESIDUAL}::test_the_correction_is_the_network_s_in_the_policy_s_units",
        ),
        (
            "a held arm is corrected",
            " & ~np.isnan(chunk_ages)",
            "",
            f"{RESIDUAL}::test_rows_without_a_sensor_and_those_that_hold_the_arm_come_back_as_they_are",
        ),
        (
            "beside any checkpoint",
            "if metadata.checkpoint != CheckpointIdentity.of(loaded):",
            "if False:",
            f"{RESIDUAL}::test_beside_another_checkpoint_it_is_refused",
        ),
    ),
    *_of(
        "vla_jax/preprocessing/normaliser.py",
        (
            "a constant dimension divided by nothing",
            "jnp.where(self.action_scale > 0, self.action_scale, 1.0)",
            "self.action_scale",
            NORMALISER,
        ),
        (
            "the A-scan centred bin by bin",
            "axis=(-2, -1), keepdims=True)",
            "axis=-2, keepdims=True)",
            NORMALISER,
        ),
        ("the A-scan not centred", "        if self.centre_ascan:", "        if False:", NORMALISER),
        (
            "min-max fills half the range",
            "_scale_or(0.0, (actions.max - actions.min) / 2)",
            "_scale_or(0.0, actions.max - actions.min)",
            NORMALISER,
        ),
        (
            "moments of absent slots too",
            "weights = mask[..., None].astype(np.float64)",
            "weights = np.ones((*mask.shape, 1))",
            NORMALISER,
        ),
    ),
    *_of(
        "vla_jax/policy/network.py",
        (
            "windows of samples without sensor read",
            "            sensor = jnp.where(has_sensor[:, None, None], sensor, 0.0)\n",
            "            pass\n",
            ABSENT,
        ),
        (
            "the no-sensor vector unused",
            "if has_sensor is None or self.no_sensor is None:",
            "if True:",
            f"{NETWORK}::test_a_learned_vector_stands_for_the_sensor_of_the_rows_without_one",
        ),
        (
            "absent windows in BatchNorm's statistics",
            "counts = has_sensor if self.config.sensor.masked_statistics else None",
            "counts = None",
            f"{NETWORK}::test_missing_sensors_stay_out_of_the_statistics_and_zeros_are_the_references_way",
        ),
    ),
    *_of(
        "vla_jax/models/sensor_encoder.py",
        (
            "one row of many instead of their average",
            'mode = "area" if',
            'mode = "nearest" if',
            "tests/vla_jax/models/test_sensor_encoder.py::test_rows_are_averaged_before_the_convolutions",
        ),
    ),
    *_of(
        "vla_jax/preprocessing/preprocessor.py",
        (
            "the averages' last rows left out",
            "for row in range(parts.shape[2])",
            "for row in range(parts.shape[2] - 1)",
            "tests/vla_jax/preprocessing/test_preprocessor.py::test_averages_are_those_that_the_encoder_would_take",
        ),
    ),
    *_of(
        "vla_jax/models/fusion.py",
        (
            "the gate opens both sides",
            "gate * pooled + (1 - gate) * sensor",
            "gate * pooled + gate * sensor",
            GATED_STEP,
        ),
        (
            "the query is not kept",
            "query + found if self.query_residual else found",
            "found",
            f"{NETWORK}::test_cross_attention_that_keeps_its_query_says_more_of_the_sensor_than_a_choice_of_tokens",
        ),
    ),
    *_of(
        "vla_jax/models/vl_pooling.py",
        (
            "absent tokens attended to",
            "None if mask is None else mask[:, None, :]",
            "None",
            PADDED,
        ),
    ),
    *_of(
        "vla_jax/models/transformer.py",
        ("attention not scaled", "scale = (self.width // self.num_heads) ** -0.5", "scale = 1.0", SAMPLED),
    ),
    *_of(
        "vla_jax/models/batch_norm.py",
        (
            "the running variance biased",
            "unbiased = var[0, 0, 0] * (",
            "unbiased = var[0, 0, 0] + 0 * (",
            ONE_STEP,
        ),
        ("a faster running average", "MOMENTUM = 0.1", "MOMENTUM = 0.2", ONE_STEP),
    ),
    *_of(
        "vla_jax/models/dropout.py",
        ("what dropout keeps is not scaled", "x / kept", "x", DROPOUT),
        (
            "dropout keeps what it should drop",
            ">= dropped",
            "< dropped",
            DROPOUT,
        ),
    ),
    *_of(
        "vla_jax/heads/denoiser.py",
        (
            "horizon embedding dropped",
            "if self.horizon_embedding is not None:",
            "if False:",
            f"{DIFFUSION}::test_the_horizon_embedding_tells_the_tokens_apart",
        ),
        (
            "promised actions at the time of noisy ones",
            "told = jnp.where(prefix.given[..., None], (clean + condition)[:, None, :], told)",
            "pass",
            f"{PREFIX}::test_promised_actions_have_the_time_of_clean_ones",
        ),
    ),
    *_of(
        "vla_jax/heads/prefix.py",
        (
            "the loss of promised actions counts",
            "jnp.where(rest[..., None], error, 0.0)",
            "error",
            f"{PREFIX}::test_the_loss_leaves_promised_actions_out",
        ),
    ),
    *_of(
        "vla_jax/diffusion/guidance.py",
        (
            "guidance pushes away from the plan",
            "weights * (plan - clean)",
            "weights * (clean - plan)",
            f"{GUIDANCE}::test_a_guided_chunk_goes_on_from_the_plan",
        ),
    ),
    *_of(
        "vla_jax/diffusion/flow_path.py",
        (
            "more clean times than noisy ones",
            "t = 1.0 - jax.random.beta(key, alpha, beta, (count,), jnp.float32)",
            "t = jax.random.beta(key, alpha, beta, (count,), jnp.float32)",
            f"{FLOW_PATH}::test_the_share_of_noise_has_the_moments_of_its_beta_distribution",
        ),
    ),
    *_of(
        "vla_jax/policy/chunk_execution.py",
        (
            "chunks planned on before they can be sent",
            "if begun + self._execution.latency <= tick < begun + len(chunk)",
            "if begun <= tick < begun + len(chunk)",
            f"{CHUNKS}::test_a_late_chunk_gives_the_action_of_the_tick_and_the_arm_holds_before",
        ),
        (
            "one chunk's first action again and again",
            "chunk[tick - begun] for",
            "chunk[0] for",
            f"{CHUNKS}::test_a_late_chunk_gives_the_action_of_the_tick_and_the_arm_holds_before",
        ),
    ),
    *_of(
        "vla_jax/heads/diffusion.py",
        (
            "one noise draw where several are asked for",
            "b, draws = actions.shape[0], self.config.noise_draws",
            "b, draws = actions.shape[0], 1",
            DRAWS,
        ),
        (
            "several draws of one noise",
            "noise = jax.random.normal(keys[1], actions.shape, actions.dtype)",
            "noise = jnp.repeat(jax.random.normal(keys[1], (b, *actions.shape[1:]), actions.dtype), draws, axis=0)",
            DRAWS,
        ),
        (
            "several draws of one step",
            "t = jax.random.randint(keys[0], (b * draws,), 0, self.schedule.steps)",
            "t = jnp.repeat(jax.random.randint(keys[0], (b,), 0, self.schedule.steps), draws)",
            DRAWS,
        ),
        (
            "every row starts from the first row's noise",
            "x_T = jax.vmap(self.draw_noise)(start_keys)",
            "x_T = jax.vmap(self.draw_noise)(jnp.broadcast_to(start_keys[:1], start_keys.shape))",
            OWN_NOISE,
        ),
        (
            "DDPM's noise not of the row's key",
            "lambda key: draw_row(jax.random.split(key, count))",
            "lambda key: draw_row(jax.random.split(keys[0], count))",
            OWN_NOISE,
        ),
    ),
    *_of(
        "vla_jax/heads/regression.py",
        (
            "the target never an anchor",
            'anchor = actions if self.config.z_chunk == "target" else self._anchor(condition, previous_chunk)',
            "anchor = self._anchor(condition, previous_chunk)",
            f"{NETWORK}::test_regression_adds_to_the_anchor_that_the_configuration_names",
        ),
        (
            "the anchor left out of the actions",
            "return z_chunk + delta, delta",
            "return delta, delta",
            f"{NETWORK}::test_regression_adds_to_the_anchor_that_the_configuration_names",
        ),
    ),
    *_of(
        "vla_jax/diffusion/schedule.py",
        (
            "the sign of v",
            "return signal * noise - at(",
            "return signal * noise + at(",
            f"{DIFFUSION}::test_several_draws_are_of_noise_and_step_each",
        ),
    ),
    *_of(
        "vla_jax/diffusion/ddim.py",
        ("DDIM does not clip", "x_0 = jnp.clip(x_0, -clip, clip)", "x_0 = x_0", SAMPLED),
    ),
    *_of(
        "vla_jax/diffusion/ddpm.py",
        (
            "DDPM adds noise on arriving",
            "np.where(np.arange(chain.steps) > 0, np.sqrt(chain.posterior_variance), 0)",
            "np.sqrt(chain.posterior_variance + 1e-4)",
            SAMPLED,
        ),
    ),
]

DATA = [
    *_of(
        "vla_jax/dataset/packed_dataset.py",
        (
            "the previous action is the next",
            "self.ticks.delta[np.maximum(ticks - 1, 0)]",
            "self.ticks.delta[ticks]",
            f"{PACKED}::test_chunks_and_previous_actions_stay_in_their_episode",
        ),
        (
            "the action before the first is another episode's",
            "np.where(is_first[:, None], self.spec.actions.before_first, previous)",
            "previous",
            f"{PACKED}::test_chunks_and_previous_actions_stay_in_their_episode",
        ),
        (
            "windows without sensor hold other rows",
            "windows[end < 0] = 0",
            "pass",
            f"{PACKED}::test_windows_repeat_the_first_row_and_are_zero_without_sensor",
        ),
        (
            "ticks before the first picture are samples",
            "self.ticks.is_sample & (self.ticks.record >= 0) & wanted",
            "self.ticks.is_sample & wanted",
            f"{PACKED}::test_everything_a_sample_sees_is_from_before_its_tick",
        ),
        (
            "held-out episodes in the training split",
            'split in ("all", entry.split)',
            'split in ("all", "train")',
            f"{PACKED}::test_splits_are_by_episode",
        ),
    ),
    *_of(
        "vla_jax/contracts/specs.py",
        (
            "the gripper open before the first action",
            "np.where(np.equal(self.low, self.high), self.low, 0.0)",
            "np.zeros(self.size)",
            f"{PACKED}::test_chunks_and_previous_actions_stay_in_their_episode",
        ),
    ),
    *_of(
        "vla_jax/dataset/batches.py",
        (
            "every epoch in the same order",
            "default_rng([self._seed, epoch])",
            "default_rng([self._seed])",
            f"{BATCHES}::test_an_epoch_shows_every_sample_once_and_epochs_differ",
        ),
        (
            "samples drawn regardless of their weights",
            "if weights is not None and len(weights) and (weights != weights[0]).any():",
            "if False:",
            f"{BATCHES}::test_source_weights_mix",
        ),
        (
            "copies that fill a batch up are valid",
            "valid = rows < len(ticks)",
            "valid = rows >= 0",
            f"{BATCHES}::test_sequential_batches_show_all_samples_once",
        ),
    ),
    *_of(
        "vla_jax/dataset/feature_ages.py",
        (
            "older features are another episode's",
            "np.arange(self._num_back), self._first[episode][:, None])",
            "np.arange(self._num_back), 0)",
            f"{FEATURE_AGES}::test_the_record_of_an_age_is_the_closest_of_its_own_episode",
        ),
        (
            "one age drawn for all",
            "np.interp(uniform_draws(self._seed, positions), levels",
            "np.interp(uniform_draws(self._seed, 0 * positions), levels",
            f"{FEATURE_AGES}::test_ages_follow_their_quantiles",
        ),
    ),
    *_of(
        "vla_jax/dataset/split.py",
        ("sides forgotten", 'side or ("val" if', '("val" if', SPLIT),
        ("old episodes moved before new ones", "min(new or members,", "min(members,", SPLIT),
        (
            "held-out episodes trained on",
            'elif "train" not in held_out and new:\n        chosen, side = max(new,',
            'elif "train" not in held_out:\n        chosen, side = max(members,',
            SPLIT,
        ),
    ),
    *_of(
        "vla_jax/dataset/split_memory.py",
        (
            "of namesakes the last one's side",
            'if self._by_identity.get(identity) != "val":',
            "if True:",
            SPLIT,
        ),
        (
            "moved episodes forgotten",
            "self._by_identity.get(episode_identity(path)) for path",
            "None for path",
            SPLIT,
        ),
    ),
    *_of(
        "vla_jax/dataset/joining.py",
        (
            "episodes that left forgotten",
            'index["left"] = memory.without(paths)',
            'index["left"] = {}',
            COME_AND_GO,
        ),
        (
            "another seed does not start anew",
            'if current is not None and current.index["split"] == chosen_by:',
            "if current is not None:",
            COME_AND_GO,
        ),
        (
            "statistics of held-out episodes too",
            'strict=True) if split == "train"',
            "strict=True)",
            f"{PACKED}::test_statistics_are_of_the_training_episodes",
        ),
    ),
    *_of(
        "vla_jax/dataset/statistics.py",
        (
            "spread between episodes left out",
            "difference**2 * count * added / total",
            "0 * count",
            STATISTICS,
        ),
    ),
    *_of(
        "vla_jax/timing.py",
        (
            "pictures of the future",
            'side="right") - 1',
            'side="right")',
            f"{TIMING}::test_never_takes_later_data",
        ),
        (
            "windows across a gap",
            "library.maximum(end[:, None] + library.arange(-size, 0)[None, :], begin[:, None])",
            "library.maximum(end[:, None] + library.arange(-size, 0)[None, :], 0)",
            TIMING,
        ),
        (
            "states of the episode before",
            "np.where(found >= first[:, None], found, -1)",
            "np.where(found >= 0, found, -1)",
            f"{STATE_WINDOWS}::test_windows_are_the_poses_of_earlier_ticks_of_the_episode",
        ),
        (
            "chunks into the next episode",
            "np.minimum(ticks[:, None] + np.arange(horizon), last[:, None])",
            "ticks[:, None] + np.arange(horizon)",
            f"{PACKED}::test_chunks_and_previous_actions_stay_in_their_episode",
        ),
    ),
    *_of(
        "vla_jax/recordings/restricted_pickle.py",
        (
            "the unpickler admits builtins.getattr",
            '    ("numpy", "ndarray"): _Array,\n',
            '    ("numpy", "ndarray"): _Array,\n    ("builtins", "getattr"): getattr,\n',
            LEGACY,
        ),
        (
            "arrays with fewer bytes than they say",
            "resolved.itemsize != len(data)",
            "resolved.itemsize < 0",
            LEGACY,
        ),
    ),
]

CACHE = [
    *_of(
        "feature_cache/keys.py",
        (
            "the prompt left out of a key",
            "provenance_digest, prompt, list",
            'provenance_digest, "", list',
            KEYS,
        ),
        ("the order of the images left out of a key", "list(image_digests)", "sorted(image_digests)", KEYS),
        ("the provenance left out of a key", "[KEY_VERSION, provenance_digest,", '[KEY_VERSION, "",', KEYS),
    ),
    *_of(
        "feature_cache/pooling.py",
        ("the text's slot holds the images", "weights[-1, ~is_image] =", "weights[-1, is_image] =", POOLING),
        (
            "cells do not average",
            "weights[i, first:stop] = 1 / (stop - first)",
            "weights[i, first:stop] = 1",
            POOLING,
        ),
    ),
    *_of(
        "feature_cache/store.py",
        (
            "records read unchecked",
            "!= self._checksum[position]",
            "< 0",
            f"{STORE}::test_a_flipped_bit_in_the_features_is_found_on_reading",
        ),
        (
            "keys told apart by half",
            "step = same_high & (here[:, 1] < wanted[:, 1])",
            "step = same_high & False",
            f"{STORE}::test_keys_that_share_their_first_half_are_told_apart",
        ),
    ),
    *_of(
        "feature_cache/shard.py",
        (
            "a shard's bytes not compared with its name",
            "if path.name != _name(file_digest(path)):",
            "if False:",
            f"{STORE}::test_any_flipped_bit_is_found_by_verify_and_never_read",
        ),
    ),
]

ACTING = [
    *_of(
        "vla_jax/evaluation/metrics.py",
        ("first actions of two", "first, dims = slice(0, 1)", "first, dims = slice(0, 2)", METRICS),
        ("R² about zero", "np.square(y - y.mean()).sum()", "np.square(y).sum()", METRICS),
        ("the gripper moves the arm", "sorted(translation + rotation)", "range(actions.size)", METRICS),
    ),
    *_of(
        "vla_jax/evaluation/drift.py",
        ("angles not wrapped", "wrap_degrees(error[:, dims.rotation])", "error[:, dims.rotation]", DRIFT),
        (
            "each chunk's first action executed throughout",
            "index % horizon, index % horizon]",
            "index % horizon, 0]",
            DRIFT,
        ),
    ),
    *_of(
        "vla_jax/evaluation/prediction.py",
        (
            "one noise for all samples in evaluation",
            "draw_keys(root, batch.tick)",
            "draw_keys(root, 0 * batch.tick)",
            f"{OPEN_LOOP}::test_every_sample_has_a_key_of_its_own_by_seed_and_tick",
        ),
    ),
    *_of(
        "vla_jax/evaluation/judgement.py",
        (
            "factors turned round",
            "return baseline / policy if",
            "return policy / baseline if",
            f"{OPEN_LOOP}::test_factor",
        ),
    ),
    *_of(
        "vla_jax/evaluation/closed_loop.py",
        (
            "features said to be new",
            "row.reading.time_s - row.features.image_time_s",
            "0.0 * row.reading.time_s",
            f"{CLOSED_LOOP}::test_a_policy_that_is_told_how_old_its_features_are_is_told_of_their_pictures",
        ),
        (
            "features of every tick's pictures",
            "return self.tick % self._settings.refresh_ticks == 0",
            "return True",
            f"{CLOSED_LOOP}::test_features_stay_until_they_are_refreshed_from_the_newest_pictures",
        ),
        (
            "one noise for all episodes",
            "fold_in(key, name[0]), name[1])",
            "fold_in(key, 0), name[1])",
            f"{CLOSED_LOOP}::test_an_episode_does_not_depend_on_what_runs_beside_it",
        ),
    ),
    *_of(
        "vla_jax/policy/prediction.py",
        (
            "one key for all rows",
            "return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(rows).astype(jnp.uint32))",
            "return jax.vmap(jax.random.fold_in, (None, 0))(key, 0 * jnp.asarray(rows).astype(jnp.uint32))",
            f"{POLICY}::test_rows_of_one_batch_draw_different_noise",
        ),
    ),
    *_of(
        "vla_jax/policy/insertion_policy.py",
        (
            "one noise for a call's rows",
            "row_keys(key, jnp.arange(observation.batch_size))",
            "row_keys(key, jnp.zeros(observation.batch_size))",
            f"{POLICY}::test_rows_of_one_batch_draw_different_noise",
        ),
        (
            "actions that are not finite reach the robot",
            "if not np.isfinite(actions).all():",
            "if False:",
            f"{POLICY}::test_nothing_unfinite_reaches_the_robot",
        ),
    ),
    *_of(
        "vla_jax/bundle/run.py",
        (
            "a damaged bundle acts",
            "if found != checksums.get(name):",
            "if False:",
            f"{BUNDLE_FOLDER}::test_a_changed_byte_is_noticed_before_anything_acts",
        ),
        (
            "bundled actions that are not finite reach the robot",
            "if not np.isfinite(actions).all():",
            "if False:",
            f"{BUNDLED}::test_inputs_that_do_not_fit_are_named",
        ),
    ),
    *_of(
        "vla_jax/bundle/writing.py",
        (
            "a row's own key is folded",
            "fold < 0, keys",
            "fold < -1, keys",
            f"{BUNDLED}::test_keys_are_the_policy_s",
        ),
    ),
    *_of(
        "vla_jax/policy/artifact.py",
        (
            "a damaged policy acts",
            'check_sound(directory, (item, "statistics", "normaliser"))',
            "pass",
            f"{CHECKPOINTS}::test_a_policy_is_not_made_of_damaged_parts",
        ),
        ("a policy acts by the live weights", "item = metadata.weights", 'item = "params"', HELD_OUT),
        ("centring not restored", 'centre_ascan=config.sensor == "centred"', "centre_ascan=False", HELD_OUT),
    ),
    *_of(
        "vla_jax/reference/conversion.py",
        (
            "scales dropped on export",
            "    if scaled:\n",
            "    if False:\n",
            f"{CONVERSION}::test_a_policy_that_scales_is_not_exported",
        ),
    ),
]

SERVING = [
    *_of(
        "vla_jax/serving/messages.py",
        (
            "arrays of objects",
            'for name in ("?", "i1",',
            'for name in ("O", "?", "i1",',
            f"{MESSAGES}::test_a_damaged_message_is_refused",
        ),
        (
            "lists without end",
            "if elements > MAX_ELEMENTS:",
            "if False:",
            f"{MESSAGES}::test_lists_cost_no_more_than_is_allowed",
        ),
    ),
    *_of(
        "vla_jax/serving/requests.py",
        (
            "numbers that are none are taken",
            "if not np.isfinite(values).all()]",
            "if False]",
            f"{REQUESTS}::test_what_does_not_fit_is_refused",
        ),
    ),
    *_of(
        "vla_jax/serving/service.py",
        (
            "one noise for all requests",
            "jax.random.key(seed), 0)",
            "jax.random.key(0 * seed), 0)",
            f"{SERVICE}::test_a_seed_draws_what_predict_draws_with_its_key_in_any_batch",
        ),
        (
            "sizes that were not compiled",
            "rows = [*requests, *[requests[-1]] * (size - len(requests))]",
            "rows = [*requests]",
            f"{SERVICE}::test_nothing_is_compiled_after_the_warm_up",
        ),
        (
            "absent sensors are zeros",
            "has_sensor = np.array([row.sensor is not None for row in rows])",
            "has_sensor = np.ones(len(rows), bool)",
            f"{SERVICE}::test_several_at_once_are_answered_as_one_by_one",
        ),
    ),
    *_of(
        "vla_jax/serving/batching.py",
        (
            "one at fault takes its batch with it",
            "return [error] if len(items) == 1 else [self._each([item])[0] for item in items]",
            "return [error] * len(items)",
            f"{BATCHING}::test_only_who_is_at_fault_is_refused",
        ),
        (
            "the loop waits for predictions",
            "results = await loop.run_in_executor(self._thread, self._each, [job.item for job in batch])",
            "results = self._each([job.item for job in batch])",
            f"{SERVER}::test_health_answers_in_ten_ms_while_predictions_run",
        ),
    ),
    *_of(
        "vla_jax/serving/access.py",
        (
            "any key opens",
            "return len(given) == 1 and hmac.compare_digest(",
            "return len(given) == 1 or hmac.compare_digest(",
            f"{ACCESS}::test_only_the_key_opens",
        ),
        (
            "other machines without a key",
            "if api_key is None and not",
            "if False and not",
            f"{ACCESS}::test_other_machines_need_one",
        ),
    ),
    *_of(
        "vla_jax/serving/server.py",
        (
            "pages in browsers come in",
            "origins=[None],",
            "origins=None,",
            f"{SERVER}::test_a_page_in_a_browser_does_not_come_in",
        ),
    ),
    *_of(
        "vla_jax/client.py",
        (
            "a late reply is the next one's",
            "        except TimeoutError as error:\n            self.close()\n",
            "        except TimeoutError as error:\n",
            f"{CLIENT}::test_a_late_reply_is_never_taken_for_another_s",
        ),
    ),
]

MUTANTS = [*TRAINING, *NETWORKS, *DATA, *CACHE, *ACTING, *SERVING]
ON_A_ROBOT = [
    *_of(
        "vla_jax/live/safety.py",
        (
            "speed not cut",
            "slow = cut_speed(action, limits.low, limits.high, limits.groups)",
            "slow = action",
            SAFETY,
        ),
        ("an old stream moves the arm", "elif age > limit:", "elif age < limit:", SAFETY),
        ("a missing stream moves the arm", "if age is None:", "if age is None and False:", SAFETY),
        ("a hold never stops", ">= self.limits.stop_after_s", ">= 1e9", SAFETY),
        ("the workspace is anywhere", '["workspace"] if astray.any() else []', "[]", SAFETY),
    ),
    *_of(
        "vla_jax/live/cutting.py",
        ("braking is cut", "np.minimum(np.abs(action), np.abs(previous))", "np.abs(previous)", SAFETY),
        ("cut axes leave the way", "share[list(group)].min(initial=1.0)", "share[list(group)]", SAFETY),
        ("motion over the edge", "np.where(moved > 0, high - at, at - low)", "0 * at + 1e9", SAFETY),
    ),
    *_of(
        "vla_jax/live/clock.py",
        (
            "the mean of delays",
            "float(second if second - least > LONE_S else least)",
            "float(delays.mean())",
            CLOCK,
        ),
        ("one wrong stamp is enough", "second if second - least > LONE_S else least", "least", CLOCK),
        ("a jump is never believed", "if self._is_believed(excess):", "if False:", CLOCK),
        ("any stamp is believed", "return self.is_known and JUMP_S < excess", "return True or excess", CLOCK),
    ),
    *_of(
        "vla_jax/live/buffers.py",
        ("windows reach over gaps", "> MAX_ROW_GAP_SECONDS) + 1", "> 1e9) + 1", ROWS),
        ("rows that came twice are kept", "<= TIME_RESOLUTION:\n", "< 0:\n", ROWS),
    ),
    *_of(
        "vla_jax/live/ticks.py",
        ("late ticks are made up for", "number = max(number, self._next_in_time())", "pass", TICKS),
    ),
    *_of(
        "vla_jax/live/loop.py",
        (
            "a dry run sends",
            "        if self._settings.dry_run:\n            return False\n",
            "",
            f"{LIVE_LOOP}::test_a_dry_run_sends_nothing_at_all",
        ),
        (
            "streams are looked at in ticks alone",
            "if limit is not None and now - received > limit:",
            "if limit is None:",
            f"{LIVE_LOOP}::test_a_stream_that_stops_is_seen_between_ticks_and_its_return_goes_on",
        ),
    ),
    *_of(
        "vla_jax/live/wire.py",
        ("any size is read", "if len(datagram) != expected:", "if False:", WIRE),
        (
            "NaN is read",
            "if not ((values >= low) & (values <= high)).all():",
            "if (values > high).any():",
            WIRE,
        ),
        ("the picture's size is not compared", "or size != len(jpeg)", "", WIRE),
    ),
    *_of(
        "vla_jax/live/row_order.py",
        ("rows as they came", 'np.argsort(own, kind="stable")', "np.arange(len(own))", ROW_ORDER),
        ("times run back over a jump", "own[i] + self._offset > self._last", "True", ROW_ORDER),
    ),
    *_of(
        "vla_jax/live/recorder.py",
        (
            "states that stop end nothing",
            "message.time - self._episode.last > MIN_GAP_SECONDS",
            "False",
            f"{RECORDER}::test_where_states_stop_for_long_another_episode_begins",
        ),
        (
            "damaged pictures are kept",
            'check_picture("picture", picture.jpeg, ("JPEG",))',
            "pass",
            f"{RECORDER}::test_what_is_damaged_or_late_leaves_the_episode_whole",
        ),
    ),
    *_of(
        "experiments/phantom/lab/arm.py",
        ("velocities never expire", "if in_force_s < STEP_S:", "if False:", ARM),
        ("any speed", "self._velocity = np.clip(wanted, -largest, largest)", "self._velocity = wanted", ARM),
        ("commands of the future", "self._inbox[0][1] <= start_s", "True", ARM),
        ("no watchdog", ">= self._rules.watchdog_s", ">= 1e9", ARM),
    ),
]

MUTANTS = [*TRAINING, *NETWORKS, *DATA, *CACHE, *ACTING, *ON_A_ROBOT]
