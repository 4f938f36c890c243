"""From addresses to a backend: who is there, what do they serve, and do they answer as they should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from transformers import AutoModel, GenerationConfig

from rsd_integrations.backends.shared.bars import no_progress_bars
from rsd_integrations.backends.shared.describe import (
    active_parameters,
    attention_kinds,
    model_info,
    text_config,
)
from rsd_integrations.backends.shared.sources import HUB_OPTIONS, WITH_HEAD, Source, check_templates
from rsd_integrations.backends.shared.tooling import Calls
from rsd_integrations.backends.shared.writing import Language
from rsd_integrations.backends.vllm.address import Address, split_options
from rsd_integrations.backends.vllm.asking import Asking, Labelling, Pooling, are_probabilities
from rsd_integrations.backends.vllm.client import Servers
from rsd_integrations.backends.vllm.scorer import STEP_TAGS, VLLMScorer
from rsd_integrations.backends.vllm.serving import Served, at_once, served_by
from rsd_integrations.backends.vllm.writer import VLLMWriter
from rsd_integrations.errors import BackendError, ConfigError, ModelError
from rsd_integrations.given import taken
from rsd_integrations.limits import check_count
from rsd_integrations.prm import PRMFormat, find_prm_format
from rsd_integrations.prm.base import Head
from rsd_integrations.protocols import ModelInfo, ScoreStep
from rsd_integrations.remote import RemoteBackend
from rsd_integrations.types import ROLES, Role

_FILES = ("source", "tokenizer", *HUB_OPTIONS)
"""Options for reading a model's tokenizer and config on this side."""

_TELLING = 3
"""Characters: a text of no more than these is too short to tell one vocabulary from another."""


@no_progress_bars()
def load_remote(
    given: Mapping[Role, tuple[Any, Mapping[str, Any] | None]],
    *,
    prm_format: Any,
    max_batch_size: int,
    max_length: int | None,
) -> RemoteBackend:
    """Ask the servers what they serve, read tokenizers and configs here, and have the PRM score a step.

    Args:
        given: of each role the URLs and its own options. All arguments are those of ``from_vllm``.

    Raises:
        ConfigError: an option is unknown or out of bounds.
        BackendError: a server cannot be reached or refuses.
        ModelError: a model or tokenizer cannot play its role.
    """
    check_count("max_batch_size", max_batch_size, 1)
    if max_length is not None:
        check_count("max_length", max_length, 2)
    parts: dict[str, Any] = {role: taken(role, *given[role], prm_format, remote=True) for role in ROLES}
    split = {role: split_options(role, given[role][1], _FILES) for role in ROLES if parts[role] is None}
    addresses = {role: Address.of(role, given[role][0], servers) for role, (servers, _) in split.items()}
    served = {role: served_by(addresses[role], files, max_length) for role, (_, files) in split.items()}
    judge = served.pop("prm", None)
    writers = [one.files for one in served.values()]
    check_templates(*writers)
    form = None if judge is None else find_prm_format(prm_format, judge.files.config, judge.files.tokenizer)
    calls = [Calls.of(writer.tokenizer) for writer in writers[-1:]]
    for role, one in served.items():
        parts[role] = _writer(one, calls[0])
    if judge is not None and form is not None:
        parts["prm"] = _scorer(judge, form)
    return RemoteBackend(**parts, max_batch_size=max_batch_size)


def _writer(served: Served, calls: Calls) -> VLLMWriter:
    files, name, info = served.files, served.name, _info(served, "lm")
    language = Language.of(files.tokenizer, name, _generation_config(files), calls)
    vocabulary = int(getattr(text_config(files.config), "vocab_size", 0))

    async def tried(servers: Servers) -> bool:
        writer = VLLMWriter(servers, name, language, info, vocabulary=vocabulary)
        await _write_some(writer)
        await writer.try_grammars()
        return writer.holds_grammars

    ahead = served.address.role == "draft" and served.address.ahead is not False
    writer = VLLMWriter(Servers(served.address), name, language, info, vocabulary=vocabulary, ahead=ahead)
    held = {at_once(tried, one) for one in served.there}
    writer.holds_grammars = held == {True}
    return writer


async def _write_some(writer: VLLMWriter) -> None:
    """Have the servers write, so that it shows now if they serve something else, or another vocabulary.

    Raises:
        BackendError: they do not write.
        ModelError: the tokens that they write are another text on this side.
    """
    there, here = await writer.sample("Hi")
    first, second = ("".join(text.split()) for text in (there, here))
    if len(first) > _TELLING and SequenceMatcher(None, first, second).ratio() < 0.5:
        raise ModelError(
            f"the servers of {writer.info.name!r} wrote {there!r:.80}, of which the tokenizer on this side "
            f"makes {here!r:.80}.",
            hint="Give the 'source' (a folder or hub id) whose tokenizer is the served model's.",
        )


def _generation_config(files: Source) -> Any:
    try:
        return GenerationConfig.from_pretrained(files.name, **files.hub)
    except OSError:  # There is none.
        return GenerationConfig.from_model_config(files.config)


def _scorer(served: Served, form: PRMFormat) -> VLLMScorer:
    """The PRM.

    Raises:
        BackendError: its servers do not score steps.
    """
    if form.head == "lm":  # The token that is asked for takes a place, too.
        served = replace(served, window=served.window - 1)
    info = _info(served, form.head, form.recommended_threshold)
    asking: Asking = Labelling(tuple(form.columns or ())) if form.head == "lm" else Pooling()

    def scorer(servers: Servers, asking: Asking) -> VLLMScorer:
        return VLLMScorer(servers, served.name, form, info, asking)

    kinds = {at_once(lambda servers: _score_a_step(scorer(servers, asking)), one) for one in served.there}
    if len(kinds) > 1:
        raise ConfigError(
            "some replicas of prm give probabilities and some logits, though all were asked for logits.",
            hint="Serve them with one version of vLLM.",
        )
    return scorer(Servers(served.address), Pooling(probabilities=True) if kinds == {True} else asking)


async def _score_a_step(scorer: VLLMScorer) -> bool:
    """Score a step, so that what is wrong with a server shows now, and not as wrong rewards.

    Returns:
        Whether it gives probabilities, though it was asked for logits.

    Raises:
        BackendError: it does not give rewards where the format reads them.
    """
    session = scorer.open("What is 1 + 1?")
    step = "1 + 1 = 2."
    await scorer.score(session, ScoreStep(step))
    tokens, _ = session.lay_out(step)
    whole, before = await scorer.read(tokens), await scorer.read(tokens[:-1])
    # Outputs are at the last token, at all tokens, or at separators: then the last token adds one.
    if not whole.cached and whole.rows not in (len(tokens), before.rows + 1):
        raise BackendError(
            f"{scorer.info.name!r} gives {whole.rows} rewards for a step, none of them at its end.",
            hint=STEP_TAGS,
        )
    other = await scorer.read(session.lay_out("So 1 + 1 is 3, or 4.")[0])
    return all(len(one.outputs) > 1 and are_probabilities(one.outputs) for one in (whole, other))


def _info(served: Served, head: Head, threshold: float | None = None) -> ModelInfo:
    """By the model's config: its weights are elsewhere. Heads that transformers cannot make do not count."""
    config = served.files.config
    return model_info(
        served.name,
        config,
        parameters=active_parameters(served.files.empty(WITH_HEAD.get(head, AutoModel))),
        window=served.window,
        attention=attention_kinds(text_config(config)),
        threshold=threshold,
        longest=served.longest,
    )
