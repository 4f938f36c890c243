"""From model sources to a backend: two writers and a scorer.

Models that cannot work are refused, before any weight is loaded where that can be known.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rsd_integrations.backends.shared.bars import no_progress_bars
from rsd_integrations.backends.shared.describe import (
    AttentionKinds,
    active_parameters,
    attention_kinds,
    model_info,
    positions,
    text_config,
)
from rsd_integrations.backends.shared.sources import (
    MAKING_MODELS,
    ModelSource,
    Source,
    auto_class,
    check_placement,
    check_templates,
)
from rsd_integrations.backends.shared.tooling import Calls
from rsd_integrations.backends.shared.unreadable import remedy, told
from rsd_integrations.backends.shared.writing import Language
from rsd_integrations.backends.torch.attention import slides
from rsd_integrations.backends.torch.checkpoint import (
    check_adapters,
    check_embeddings,
    check_language_model,
    load_complete,
)
from rsd_integrations.backends.torch.failures import Embedded, free_frames
from rsd_integrations.backends.torch.heads import RewardModel, load_reward_model
from rsd_integrations.backends.torch.launch import launcher_of
from rsd_integrations.backends.torch.readout import Readout, read_hidden, read_logits
from rsd_integrations.backends.torch.recurrent import RecurrentRunner
from rsd_integrations.backends.torch.refusals import check_architecture
from rsd_integrations.backends.torch.runner import SlotRunner
from rsd_integrations.backends.torch.scorer import TorchScorer
from rsd_integrations.backends.torch.self_check import check_slots
from rsd_integrations.backends.torch.states import is_recurrent
from rsd_integrations.backends.torch.threads import apart
from rsd_integrations.backends.torch.writer import TorchWriter
from rsd_integrations.errors import ModelError
from rsd_integrations.given import taken
from rsd_integrations.limits import check_choice, check_count
from rsd_integrations.prm import PRMFormat, find_prm_format
from rsd_integrations.protocols import Backend, ModelInfo
from rsd_integrations.types import ROLES, Role


@no_progress_bars()
def load_backend(
    given: Mapping[Role, tuple[ModelSource, Mapping[str, Any] | None]],
    *,
    prm_format: Any,
    device: str | None,
    dtype: Any,
    max_batch_size: int,
    max_length: int,
    compile: bool,
    cuda_graphs: bool | None,
    cpu_traces: bool,
    prefix_caching: bool,
) -> Backend:
    """Load the three models. What can be checked without weights is checked first, for all three.

    Args:
        given: of each role the model and its own options. All arguments are those of ``from_pretrained``.

    Raises:
        ConfigError: an option is unknown or out of bounds.
        ModelError: a model or tokenizer cannot play its role.
        DeviceMemoryError: the models or their caches do not fit.
    """
    check_count("max_batch_size", max_batch_size, 1)
    check_count("max_length", max_length, 2)
    device = str(device or default_device())
    check_placement(device, dtype, "")
    check_choice("compile", compile, True, False)
    check_choice("cuda_graphs", cuda_graphs, True, False, None)
    check_choice("cpu_traces", cpu_traces, True, False)
    check_choice("prefix_caching", prefix_caching, True, False)
    parts: dict[str, Any] = {role: taken(role, *given[role], prm_format, remote=False) for role in ROLES}
    sources = {role: Source.of(role, *given[role]) for role in ROLES if parts[role] is None}
    for source in sources.values():
        check_architecture(source)
    writers = [sources[role] for role in ("draft", "target") if role in sources]
    check_templates(*writers)
    judge = sources.get("prm")
    prm_form = None if judge is None else find_prm_format(prm_format, judge.config, judge.tokenizer)
    running = {
        "compile": compile,
        "cuda_graphs": cuda_graphs,
        "cpu_traces": cpu_traces,
        "slots": max_batch_size,
        "max_length": max_length,
        "prefix_caching": prefix_caching,
    }
    calls = [Calls.of(writer.tokenizer) for writer in writers[-1:]]

    def load() -> Backend:
        for source in writers:
            parts[source.role] = _load_writer(source, calls[0], device, dtype, **running)
        if judge is not None and prm_form is not None:
            parts["prm"] = _load_scorer(judge, prm_form, device, dtype, **running)
        return Backend(**parts, max_batch_size=max_batch_size)

    handled = sys.exc_info()[1]
    try:
        return apart(device, load)
    except BaseException as error:
        parts.clear()  # It outlives its frame, in the closure of ``load``.
        free_frames(error, handled)
        gc.collect()  # A runner is in a cycle with its own methods until it is closed.
        raise


def default_device() -> str:
    """CUDA where there is one, then Apple's, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load_writer(source: Source, calls: Calls, device: str, dtype: Any, **running: Any) -> TorchWriter:
    model = _writing_model(source, device, dtype)
    check_embeddings(model, source.name)
    generation = getattr(model, "generation_config", None)
    language = Language.of(source.tokenizer, source.name, generation, calls)
    runner = _runner(source.name, model, read_logits(model, language.size), **running)
    check_slots(runner, source.name)
    return TorchWriter(runner, language, _info(source.name, model, runner))


def _writing_model(source: Source, device: str, dtype: Any) -> Any:
    hint = f"The {source.role} must be a whole causal language model, no reward model or body without head."
    if source.model is not None:
        check_language_model(source.model, source.name, hint)
        check_adapters(source.model, source.name)
        return source.model
    options = {"meant": "a language model", "hint": hint, **source.load_options(device, dtype)}
    auto = auto_class(AutoModelForCausalLM, source.config)
    model = _loading(source, lambda: load_complete(auto, source.name, **options))
    return source.place(model, device)


def _load_scorer(source: Source, form: PRMFormat, device: str, dtype: Any, **running: Any) -> TorchScorer:
    options = source.load_options(device, dtype)
    origin = source.name if source.model is None else source.model
    model: RewardModel = _loading(source, lambda: load_reward_model(form.head, origin, **options))
    if source.model is None:
        source.place(model, device)
    runner = _runner(source.name, model, read_hidden(model.body, model.reader(form.columns)), **running)
    check_slots(runner, source.name)
    info = _info(source.name, model, runner, threshold=form.recommended_threshold)
    return TorchScorer(runner, form, info)


def _loading(source: Source, load: Any) -> Any:
    try:
        with MAKING_MODELS.turn():
            return load()
    except ModelError:
        raise
    except Exception as error:
        source.check_kind(error)
        raise ModelError(
            f"cannot load {source.role}={source.name!r}: {told(error, source.hub)}",
            hint=remedy(source.role, error, "weights"),
        ) from error


def _runner(
    name: str,
    model: torch.nn.Module,
    readout: Readout,
    *,
    compile: bool,
    cuda_graphs: bool | None,
    cpu_traces: bool,
    slots: int,
    max_length: int,
    prefix_caching: bool,
) -> SlotRunner:
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    config = text_config(model.config)
    capacity = min(max_length, positions(config) or max_length)
    launcher = launcher_of(model, compile=compile, cuda_graphs=cuda_graphs, slots=slots, capacity=capacity)
    kind = RecurrentRunner if is_recurrent(config) else SlotRunner
    return kind(
        config,
        readout,
        device=embeddings.weight.device,
        dtype=model.dtype,  # type: ignore[arg-type]
        slots=slots,
        capacity=capacity,
        parameters=active_parameters(model),
        launcher=launcher,
        model=model,
        traces=cpu_traces,
        prefix_caching=prefix_caching,
        attention=_attention(model, config, capacity),
        embedded=Embedded(name, getattr(embeddings, "num_embeddings", None)),
    )


def _info(name: str, model: torch.nn.Module, runner: SlotRunner, threshold: float | None = None) -> ModelInfo:
    return model_info(
        name,
        model.config,
        parameters=active_parameters(model),
        window=runner.capacity,
        attention=runner.attention,
        threshold=threshold,
    )


def _attention(model: torch.nn.Module, config: Any, capacity: int) -> AttentionKinds:
    kinds = attention_kinds(config)
    window, _ = kinds.get("sliding_attention", (None, None))
    named = getattr(config, "layer_types", None)
    if named or window is None or window >= capacity:
        return kinds
    body = model.body if isinstance(model, RewardModel) else model
    return kinds if slides(body, config) else {"full_attention": (None, None)}
