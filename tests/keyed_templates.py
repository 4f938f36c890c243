"""Chat templates of ours that write calls as models do that write no JSON: markup of keys and values."""

from __future__ import annotations

from typing import Any

from tests.small_tokenizers import byte_level

_START = (
    "{%- for tool in tools or [] %}{{- tool | tojson }}{% endfor %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
)
_END = (
    "{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{{- PROMPTED }}{%- endif %}"
)
_SAID = "{{- m.content or '' }}"
_EACH = "{%- for c in m.tool_calls or [] %}"
_ARGUMENTS = "{%- for k, v in c.function.arguments.items() %}"
_AS_JSON = "(v if v is string else v | tojson)"
_AS_STR = "(v | tojson if v is mapping or (v is sequence and v is not string) else v | string)"


def _whole(calls: str, *, said: str = _SAID, prompted: str = "''") -> str:
    return _START + said + calls + _END.replace("PROMPTED", prompted)


def _functions(value: str, mark: str = "tool_call", line: str = "\\n") -> str:
    return (
        _EACH
        + f"{{{{- ('\\n' if not loop.first else '') + '<{mark}>\\n<function=' + c.function.name + '>\\n' }}}}"
        + _ARGUMENTS
        + f"{{{{- '<parameter=' + k + '>{line}' + {value} + '{line}</parameter>\\n' }}}}{{%- endfor %}}"
        + f"{{{{- '</function>\\n</{mark}>' }}}}{{%- endfor %}}"
    )


def _pairs(line: str) -> str:
    return (
        _EACH
        + f"{{{{- '{line}<tool_call>' + c.function.name + '{line}' }}}}"
        + _ARGUMENTS
        + f"{{{{- '<arg_key>' + k + '</arg_key>{line}<arg_value>' + {_AS_JSON} + '</arg_value>{line}' }}}}"
        + "{%- endfor %}{{- '</tool_call>' }}{%- endfor %}"
    )


_INVOKED = (
    "{%- if m.tool_calls %}{{- '\\n<minimax:tool_call>\\n' }}"
    + _EACH
    + "{{- '<invoke name=\"' + c.function.name + '\">\\n' }}"
    + _ARGUMENTS
    + "{{- '<parameter name=\"' + k + '\">' + "
    + _AS_JSON
    + " + '</parameter>\\n' }}{%- endfor %}{{- '</invoke>\\n' }}{%- endfor %}"
    + "{{- '</minimax:tool_call>' }}{%- endif %}"
)


def _python(opening: str, between: str, closing: str) -> str:
    return (
        f"{{%- if m.tool_calls %}}{{{{- '{opening}' }}}}"
        + _EACH
        + f"{{{{- ('{between}' if not loop.first else '') + c.function.name + '(' }}}}"
        + "{%- for k, v in c.function.arguments.items() %}"
        + "{{- (', ' if not loop.first else '') + k + '=' + (v | tojson) }}{%- endfor %}{{- ')' }}"
        + "{%- endfor %}"
        + f"{{{{- '{closing}' }}}}{{%- endif %}}"
    )


_GEMMA = (
    "{%- macro written(v) %}{%- if v is string %}{{- '<|\"|>' + v + '<|\"|>' }}"
    "{%- elif v is mapping %}{{- '{' }}{%- for k, w in v | dictsort %}"
    "{{- (',' if not loop.first else '') + k + ':' + written(w) }}{%- endfor %}{{- '}' }}"
    "{%- elif v is sequence %}{{- '[' }}{%- for w in v %}"
    "{{- (',' if not loop.first else '') + written(w) }}{%- endfor %}{{- ']' }}"
    "{%- else %}{{- 'None' if v is none else v | tojson }}{%- endif %}{%- endmacro %}"
)
_GEMMA_CALLS = (
    _EACH
    + "{{- '<|tool_call>call:' + c.function.name + written(c.function.arguments) + '<tool_call|>' }}"
    + "{%- endfor %}{%- if m.tool_calls %}{{- '<|tool_response>' }}{%- endif %}"
)
_CALLED = ("<tool_call>", "</tool_call>")
_THINKING = ("<think>", "</think>")
_THOUGHT = "{%- if m.role == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
_SHORT_THOUGHT = "{%- if m.role == 'assistant' %}{{- '</think>' }}{%- endif %}"

QUOTED = (
    _START + _SAID + _EACH + "{{- '<|tool_call_start|>[' + c.function.name + '(' }}"
    "{%- for k, v in c.function.arguments.items() %}{{- (', ' if not loop.first else '') + k + '=' + "
    '("\'" + v + "\'" if v is string else v | string) }}{%- endfor %}'
    "{{- ')]<|tool_call_end|>' }}{%- endfor %}" + _END.replace("PROMPTED", "''")
)
"""LFM 2.5's: Python, but for texts that are put between quotes as they are."""

GEMMA = "Gemma 4"
TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Qwen3-Coder": (_whole(_functions(_AS_STR)), _CALLED),
    "Qwen3-Coder, spelled out": (_whole(_functions(_AS_STR)), ()),
    "Qwen 3.5, Nemotron 3": (
        _whole(_functions(_AS_JSON), said=_THOUGHT + _SAID, prompted="'<think>\\n'"),
        (*_CALLED, *_THINKING),
    ),
    "Seed-OSS": (
        _whole(_functions("v | string", "seed:tool_call", "")),
        ("<seed:tool_call>", "</seed:tool_call>"),
    ),
    "GLM 4.5": (
        _whole(_pairs("\\n"), said=_THOUGHT.replace("\\n", "") + _SAID),
        (*_CALLED, *_THINKING, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "GLM 4.7": (
        _whole(_pairs(""), said=_SHORT_THOUGHT + _SAID, prompted="'<think>'"),
        (*_CALLED, *_THINKING, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "MiniMax-M2": (
        _whole(_INVOKED, prompted="'<think>\\n'"),
        ("<minimax:tool_call>", "</minimax:tool_call>", *_THINKING),
    ),
    "OLMo 3": (_whole(_python("<function_calls>", "\\n", "</function_calls>")), ()),
    "LFM2, if its template showed calls": (
        _whole(_python("<|tool_call_start|>[", ", ", "]<|tool_call_end|>")),
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    GEMMA: (_GEMMA + _whole(_GEMMA_CALLS), ("<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>")),
}
SPECIAL = "GLM 4.5, with special tokens"
"""The same markup, of tokens that no text spells."""


def tokenizer(name: str) -> Any:
    """A small one with the template."""
    template, added = TEMPLATES["GLM 4.5" if name == SPECIAL else name]
    if name in (SPECIAL, GEMMA):
        thinking = tuple(mark for mark in added if mark in _THINKING)
        marks = tuple(mark for mark in added if mark not in _THINKING)
        special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks)
        return byte_level(template, special=special, added=thinking)
    return byte_level(template, added=added)
