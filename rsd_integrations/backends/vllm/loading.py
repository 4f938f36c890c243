"""From addresses to a backend: who is there, what do they serve, and do they answer as they should."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
)

from rsd_integrations.backends.shared.describe import (
    active_parameters,
    attention_kinds,
    model_info,
    positions,
    text_config,
)
from rsd_integrations.backends.shared.sources import HUB_OPTIONS, Source, first_line
from rsd_integrations.backends.shared.templates import check_templates
from rsd_integrations.backends.shared.tooling import call_format, call_reader
from rsd_integrations.backends.shared.writing import Language
from rsd_integrations.backends.vllm.address import Address, split_options
from rsd_integrations.backends.vllm.asking import Asking, Labelling, Pooling
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.backends.vllm.scorer import STEP_TAGS, VLLMScorer
from rsd_integrations.backends.vllm.writer import VLLMWriter
from rsd_integrations.errors import BackendError, ConfigError, ModelError
from rsd_integrations.prm import PRMFormat, find_prm_format
from rsd_integrations.prm.base import Head
from rsd_integrations.protocols import DraftStep, ModelInfo, Sampling, ScoreStep
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.segment import StepBoundary
from rsd_integrations.types import Role

__all__ = ["load_remote"]

_FILES = ("source", "tokenizer", *HUB_OPTIONS)
"""Options of what is read of a model on this side."""

_WITH_HEAD: dict[Head, Any] = {
    "lm": AutoModelForCausalLM,
    "token": AutoModelForTokenClassification,
    "sequence": AutoModelForSequenceClassification,
}
"""What is counted with the parameters; the heads of others are small beside them."""

Made = TypeVar("Made")


@dataclass
class _Served:
    """What a role's servers say they are, and what is read of the model on this side."""

    address: Address
    name: str
    window: int
    files: Source


def load_remote(
    draft: Any,
    target: Any,
    prm: Any,
    *,
    prm_format: Any = "auto",
    max_batch_size: int = 256,
    max_length: int | None = None,
    draft_kwargs: Mapping[str, Any] | None = None,
    target_kwargs: Mapping[str, Any] | None = None,
    prm_kwargs: Mapping[str, Any] | None = None,
) -> RemoteBackend:
    """Ask the servers what they serve, read tokenizers and configs here, and have the PRM score a step.

    Raises:
        ConfigError: an option is unknown or out of bounds.
        BackendError: a server cannot be reached or refuses.
        ModelError: a model or tokenizer cannot play its role.
    """
    for name, value, least in (("max_batch_size", max_batch_size, 1), ("max_length", max_length, 2)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(
                f"{name}={value!r} leaves no room.", hint=f"Give a whole number from {least} on."
            )
    given: tuple[tuple[Role, Any, Any], ...] = (
        ("draft", draft, draft_kwargs),
        ("target", target, target_kwargs),
        ("prm", prm, prm_kwargs),
    )
    settings = [(role, urls, *split_options(role, options, _FILES)) for role, urls, options in given]
    addresses = [Address.of(role, urls, servers) for role, urls, servers, _ in settings]
    served = [
        _served(address, files, max_length)
        for address, (_, _, _, files) in zip(addresses, settings, strict=True)
    ]
    check_templates([one.files for one in served[:2]])
    judge = served[2]
    form = find_prm_format(prm_format, judge.files.config, judge.files.tokenizer)
    # Draft and target continue one text, so they write calls alike: as the target's template does.
    calls = call_format(served[1].files.tokenizer)
    reader = call_reader(served[1].files.tokenizer, calls)
    writers = [_writer(one, form=calls, reader=reader) for one in served[:2]]
    return RemoteBackend(writers[0], writers[1], _scorer(judge, form), max_batch_size)


def _served(address: Address, options: dict[str, Any], max_length: int | None) -> _Served:
    cards = _at_once(lambda servers: servers.ask("/v1/models"), address)
    try:
        models = {str(card["id"]): card for card in cards["data"]}
    except (KeyError, TypeError) as error:
        raise BackendError(
            f"{address.urls[0]} answered {str(cards)[:200]!r} to /v1/models.",
            hint="Check that it is a vLLM server.",
        ) from error
    if address.model is None and len(models) != 1:
        raise ConfigError(
            f"{address.role}={address.urls[0]!r} serves {sorted(models)!r}.",
            hint=f"Say which: {address.role}_kwargs={{'model': ...}}.",
        )
    name = next(iter(models)) if address.model is None else address.model
    if name not in models:
        raise ConfigError(
            f"{address.role}={address.urls[0]!r} does not serve {name!r} but {sorted(models)!r}.",
            hint=f"Give one of these as {address.role}_kwargs={{'model': ...}}.",
        )
    card = models[name]
    options = dict(options)
    source = options.pop("source", None) or card.get("root") or name
    files = Source.of(address.role, source, options)
    window = min(
        size for size in (card.get("max_model_len"), max_length, positions(text_config(files.config))) if size
    )
    return _Served(address, name, int(window), files)


def _writer(served: _Served, **calls: Any) -> VLLMWriter:
    files, name, info = served.files, served.name, _info(served, "lm")
    language = Language.of(files.tokenizer, name, _generation_config(files), **calls)
    _at_once(
        lambda servers: _write_a_token(VLLMWriter(servers, name, language, info)),
        served.address,
    )
    return VLLMWriter(Servers(served.address), name, language, info)


async def _write_a_token(writer: VLLMWriter) -> None:
    """So that it shows now if they are servers of something else.

    Raises:
        BackendError: they do not write.
    """
    session = writer.open("Hi")
    session.begin(DraftStep(StepBoundary(("\n\n",)), 1, Sampling(0.0, 1.0, None, lambda: 0.0)))
    await writer.write(session)


def _generation_config(files: Source) -> Any:
    try:
        return GenerationConfig.from_pretrained(files.name, **files.hub)
    except OSError:  # There is none.
        return GenerationConfig.from_model_config(files.config)


def _scorer(served: _Served, form: PRMFormat) -> VLLMScorer:
    """The PRM.

    Raises:
        BackendError: its servers do not score steps.
    """
    asking: Asking = Labelling(tuple(form.columns or ())) if form.head == "lm" else Pooling()
    if form.head == "lm":  # The token that is asked for takes a place, too.
        served = replace(served, window=served.window - 1)
    info = _info(served, form.head, form.recommended_threshold)

    def scorer(servers: Servers) -> VLLMScorer:
        return VLLMScorer(servers, served.name, form, info, asking)

    _at_once(lambda servers: _score_a_step(scorer(servers)), served.address)
    return scorer(Servers(served.address))


async def _score_a_step(scorer: VLLMScorer) -> None:
    """So that what is wrong with a server shows now, and not as wrong rewards.

    Raises:
        BackendError: it does not give rewards where the format reads them.
    """
    session = scorer.open("What is 1 + 1?")
    step = "1 + 1 = 2."
    await scorer.score(session, ScoreStep(step))
    tokens, _ = session.lay_out(step)
    whole, before = await scorer.read(tokens), await scorer.read(tokens[:-1])
    if whole.rows not in (1, len(tokens)) and whole.rows != before.rows + 1:
        raise BackendError(
            f"{scorer.info.name!r} gives {whole.rows} rewards for a step, none of them at its end.",
            hint=STEP_TAGS,
        )


def _info(served: _Served, head: Head, threshold: float | None = None) -> ModelInfo:
    """From its config: its weights are elsewhere."""
    config = served.files.config
    return model_info(
        served.name,
        config,
        parameters=_parameters(served.files, _WITH_HEAD.get(head, AutoModel)),
        window=served.window,
        attention=attention_kinds(text_config(config)),
        threshold=threshold,
    )


def _parameters(files: Source, auto: Any) -> int:
    try:
        with torch.device("meta"):
            return active_parameters(auto.from_config(files.config))
    except Exception as error:  # An architecture that transformers does not know.
        raise ModelError(
            f"cannot tell the size of {files.role}={files.name!r}: {first_line(error)}",
            hint="Name a folder or hub id with its config as 'source'.",
        ) from error


def _at_once(ask: Any, address: Address) -> Any:
    """Wait for servers, whether an event loop runs here or not."""

    async def asked() -> Any:
        servers = Servers(address)
        try:
            return await ask(servers)
        finally:
            await servers.aclose()

    return _in_thread(asked())


def _in_thread(work: Coroutine[Any, Any, Made]) -> Made:
    made: list[Made] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="rsd-servers")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
