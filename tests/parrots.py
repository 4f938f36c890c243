"""Models that write what they are told, token by token, and tokenizers of reasoning models with templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rsd_integrations.encoding import encode_markup
from rsd_integrations.pipeline import RSDPipeline
from tests.small_tokenizers import byte_level
from tests.tiny_models import token_classifier, tokenizer

_PLACES = 512
"""Tokens of a prompt and its answer, at most."""


def parrot(tok: Any, start: int, script: tuple[int, ...]) -> Any:
    """A GPT-2 that looks at the place of a token alone, and from a place on writes a script."""
    config = GPT2Config(
        vocab_size=len(tok),
        n_embd=_PLACES,
        n_inner=1,
        n_layer=1,
        n_head=1,
        n_positions=_PLACES,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1.0)
        model.transformer.wpe.weight.copy_(torch.eye(_PLACES))
        for place, token in enumerate(script, start=start - 1):
            model.lm_head.weight[token, place] = 1.0
    return model


@dataclass(frozen=True)
class Speaker:
    """A model's way to write its thoughts, in little.

    Args:
        template: its chat template.
        thought: what it writes, with a thought in ``{thought}`` and the answer in ``{answer}``.
        plain: the same without a thought.
        special: its tokens that are special.
        added: its tokens that are not.
        ends: those that end an answer; the first one is the tokenizer's.
        variables: of the template, for thoughts.
    """

    template: str
    thought: str
    plain: str = "{answer}"
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("<|end_of_text|>",)
    variables: dict[str, Any] = field(default_factory=dict)

    def tokenizer(self) -> Any:
        special = tuple(dict.fromkeys(("<|pad|>", *self.ends, *self.special)))
        return byte_level(self.template, special=special, added=self.added, eos=self.ends[0])

    def written(self, answer: str, thought: str | None = "") -> str:
        form = self.plain if thought is None else self.thought
        return form.format(answer=answer, thought=thought)

    def called(self, name: str, arguments: str, thought: str | None) -> str:
        """A call as gpt-oss writes it."""
        before = self.thought.partition("<|channel|>final")[0].format(thought=thought) if thought else ""
        header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        return f"{before}{header}{arguments}<|call|>"

    def model(self, script: str, prompt: Any = "2 + 2?", **more: Any) -> tuple[Any, Any]:
        """One that answers a prompt by a script, and its tokenizer."""
        tok = self.tokenizer()
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        rendered = tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **more)
        ids, ends = encode_markup(tok, script), [tok.convert_tokens_to_ids(end) for end in self.ends]
        model = parrot(tok, len(rendered), ids if ids[-1] in ends else (*ids, ends[0]))
        model.generation_config.eos_token_id = ends
        return model, tok

    def pipeline(self, script: str, prompt: Any = "2 + 2?", **more: Any) -> RSDPipeline:
        """Such a draft and target, whatever a PRM thinks of them."""
        model = self.model(script, prompt, **more)
        prm = (token_classifier(), tokenizer())
        return RSDPipeline.from_pretrained(draft=model, target=model, prm=prm, max_length=_PLACES)


_TURNS = (
    "{%- for m in messages -%}"
    "{{- '<|turn|>' + m.role + '\n' + m.content + '<|end_of_text|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|turn|>assistant\n' -}}{%- endif -%}"
)

MISTRAL = Speaker(
    "{{- '[SYSTEM_PROMPT]Think:[THINK]thoughts[/THINK]answer[/SYSTEM_PROMPT]' -}}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '[INST]' + m.content + '[/INST]' -}}{%- else -%}"
    "{{- m.content + eos_token -}}{%- endif -%}{%- endfor -%}",
    "[THINK]{thought}[/THINK]{answer}",
    special=("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
    ends=("</s>",),
)

COHERE = Speaker(
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- '<|CHATBOT_TOKEN|><|START_RESPONSE|>' + "
    "m.content + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' -}}{%- else -%}{{- '<|USER_TOKEN|>' + m.content + "
    "'<|END_OF_TURN_TOKEN|>' -}}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{- '<|CHATBOT_TOKEN|>' -}}{%- if reasoning -%}{{- '<|START_THINKING|>' -}}"
    "{%- elif reasoning is defined -%}{{- '<|START_THINKING|><|END_THINKING|>' -}}{%- endif -%}{%- endif -%}",
    "<|START_THINKING|>{thought}<|END_THINKING|><|START_RESPONSE|>{answer}<|END_RESPONSE|>",
    "<|START_RESPONSE|>{answer}<|END_RESPONSE|>",
    special=(
        *("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    ends=("<|END_OF_TURN_TOKEN|>",),
)

GRANITE = Speaker(
    "{%- if thinking -%}{{- '<|turn|>system\nWrite your thoughts between <think></think> and your answer "
    "between <response></response>.<|end_of_text|>' -}}{%- endif -%}" + _TURNS,
    "<think>{thought}</think>\n\n<response>{answer}</response>",
    special=("<|turn|>",),
    variables={"thinking": True},
)

SEED = Speaker(
    "{%- set begin = '<seed:think>' -%}{%- set end = '</seed:think>' -%}{%- for m in messages -%}"
    "{{- '<seed:bos>' + m.role + '\n' -}}{%- if m.reasoning_content -%}"
    "{{- begin + m.reasoning_content + end -}}{%- endif -%}{{- m.content + '<seed:eos>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<seed:bos>assistant\n' -}}{%- endif -%}",
    "<seed:think>{thought}</seed:think>{answer}",
    special=("<seed:bos>",),
    added=("<seed:think>", "</seed:think>"),
    ends=("<seed:eos>",),
)

GEMMA = Speaker(
    "{%- for m in messages -%}{{- '<|turn>' + m.role + '\n' -}}"
    "{{- m.content.split('<channel|>')[-1] + '<turn|>\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{- '<|turn>model\n' -}}{%- if not enable_thinking -%}"
    "{{- '<|channel>thought\n<channel|>' -}}{%- endif -%}{%- endif -%}",
    "<|channel>thought\n{thought}<channel|>{answer}",
    special=("<|turn>", "<|channel>", "<channel|>"),
    ends=("<turn|>",),
    variables={"enable_thinking": True},
)

GPT_OSS = Speaker(
    "{%- for m in messages -%}{%- if m.role == 'assistant' and m.tool_calls -%}"
    "{%- if m.thinking and m.content -%}{{- raise_exception('thoughts and words') -}}{%- elif m.thinking -%}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' -}}"
    "{%- endif -%}{%- set f = m.tool_calls[0].function -%}{{- '<|start|>assistant to=functions.' + f.name + "
    "'<|channel|>commentary json<|message|>' + (f.arguments | tojson) + '<|call|>' -}}"
    "{%- elif m.role == 'assistant' -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|start|>functions.f to=assistant<|channel|>commentary<|message|>' + "
    "m.content + '<|end|>' -}}{%- else -%}"
    "{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- for tool in tools or [] -%}"
    "{{- '<|start|>developer<|message|>' + (tool.function | tojson) + '<|end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}",
    "<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{answer}",
    "<|channel|>final<|message|>{answer}",
    special=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"),
    ends=("<|return|>", "<|call|>"),
)

SPEAKERS = {
    "mistral": MISTRAL,
    "cohere": COHERE,
    "granite": GRANITE,
    "seed": SEED,
    "gemma": GEMMA,
    "gpt-oss": GPT_OSS,
}
