"""Names that nobody here reads, and what was meant by them: words of other libraries, and slips."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rsd_integrations.errors import ConfigError

_SAME: dict[str, tuple[str, ...]] = {
    "max_tokens": (
        *("max_completion_tokens", "max_new_tokens", "max_output_tokens", "max_tokens_to_sample"),
        *("max_gen_len", "max_gen_toks", "num_predict", "n_predict"),
    ),
    "max_length": ("context_window", "context_length", "max_model_len", "max_seq_len", "n_ctx", "num_ctx"),
    "max_batch_size": ("max_num_seqs", "batch_size"),
    "stop": ("stop_sequences", "stop_strings", "stop_words", "until"),
    "step_delimiter": ("step_separator", "step_word"),
    "threshold": ("delta", "reward_threshold"),
    "repetition_penalty": ("repeat_penalty",),
    "seed": ("random_seed",),
    "timeout": ("request_timeout", "max_time"),
    "draft": ("draft_model",),
    "target": ("target_model",),
    "prm": ("prm_model", "reward_model"),
    "dtype": ("torch_dtype",),
    "token": ("hf_token", "use_auth_token"),
    "model": ("served_model_name",),
}
"""Our names, and what others call the same."""

_OF_ONE_MODEL = (
    *("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code", "device_map"),
    *("quantization_config", "attn_implementation", "use_safetensors", "max_memory", "offload_folder"),
    *("tokenizer", "model_kwargs", "headers"),
)
"""Given for each model by itself, where all three are named."""


def _of_each(name: str) -> tuple[str, str]:
    return (
        "draft_kwargs",
        f'It is given for each model: draft_kwargs={{"{name}": ...}}, and so target_kwargs and prm_kwargs.',
    )


_MODELS = ("draft", "Models are named by draft, target and prm.")
_URL = ("draft", "The URL of a model's server is given as the model: draft=..., target=..., prm=....")
_LABEL = "Models are chosen by draft, target and prm where it is made; model is only their label. "
_STOPS = ("stop", "There is no such setting; stop takes strings.")
_PENALTY = ("repetition_penalty", "There is no such setting, but a repetition_penalty.")
_SAMPLES = ("seed", "A call gives one answer. For several, call once for each, with a seed of its own.")

_HABITS: dict[str, tuple[tuple[str, str], ...]] = {
    **{name: ((ours, ""),) for ours, names in _SAME.items() for name in names},
    **{name: (_of_each(name),) for name in _OF_ONE_MODEL},
    **{name: (("token", ""), _of_each("token")) for name in _SAME["token"]},
    **{
        name: (
            ("chat_template_kwargs", f'Some chat templates know it: chat_template_kwargs={{"{name}": ...}}.'),
        )
        for name in ("enable_thinking", "reasoning_effort", "thinking_budget")
    },
    **{
        name: (
            ("output", f"Write output=Output.of({name}=...)."),
            ("draft", "It is given with each call."),
        )
        for name in ("tools", "tool_choice", "parallel_tool_calls", "response_format")
    },
    **dict.fromkeys(("model_name", "model_id"), (_MODELS, ("model", ""))),
    **dict.fromkeys(("base_url", "api_base", "openai_api_base"), (_URL,)),
    **dict.fromkeys(("stop_token_ids", "eos_token_id"), (_STOPS,)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (_PENALTY,)),
    **dict.fromkeys(("n", "n_sampling", "num_return_sequences"), (_SAMPLES,)),
    "do_sample": (("temperature", "Set temperature: 0 is greedy, above 0 samples."),),
    "stream": (("output", "Call stream or astream."),),
    "min_tokens": (),
}
"""(Our name, what to do) for each name by habit, where ours is known; "": that name is what was meant."""


def nearest(name: str, known: Iterable[str], written: Mapping[str, str] = MappingProxyType({})) -> str:
    """What to do about a name that is not among the known ones.

    Args:
        written: how known ones are written that are not given by their bare names.
    """
    known = tuple(known)
    if name in _HABITS:  # Names that look like it mean something else.
        near = [(ours, said) for ours, said in _HABITS[name] if ours in known]
    else:
        near = [(ours, "") for ours in difflib.get_close_matches(name, known, n=1)]
    if not near:
        return f"Known are: {', '.join(written.get(one, one) for one in known)}."
    ours, said = near[0]
    return said or f"Did you mean {written.get(ours, repr(ours))}?"


def check_known(given: Iterable[str], known: Iterable[str], *, fixed: Iterable[str] = ()) -> None:
    """Refuse what nobody would read.

    Raises:
        ConfigError: a name is not among the known ones.
    """
    known = tuple(known)
    for name in given:
        if name in known:
            continue
        if name in fixed:
            which = _LABEL if name == "model" else ""
            raise ConfigError(
                f"{name!r} is fixed for the object and cannot be given per call.",
                hint=f"{which}Make another object; those that name the same models share them.",
            )
        raise ConfigError(f"unknown parameter {name!r}.", hint=nearest(name, known))
