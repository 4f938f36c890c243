"""Small tokenizers of the two great families, built in memory."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- if messages[0].role != 'system' -%}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}"
    "{{- raise_exception('unknown role ' + message.role) -}}{%- endif -%}"
    "{{- '<|im_start|>' + message.role + '\n' + (message.content or '') -}}"
    "{%- for call in message.tool_calls or [] -%}"
    "{{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' -}}{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LLAMA3 = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' -}}"
    "{{- message.content | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
MISTRAL = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('roles must alternate') -}}{%- endif -%}"
    "{%- if message.role == 'user' -%}{{- '[INST] ' + message.content + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + message.content + eos_token -}}{%- endif -%}{%- endfor -%}"
)
# Words with the sign or space before them, single digits, signs with the line breaks behind them, line
# breaks with the white space before them: as Qwen 2 and Llama 3 cut texts.
CUT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "user assistant system Janet has 16 eggs and sells + or - 4 of them. How many are left?",
    "Step 1: 16 - 4 = 12. Step 2: the answer is \\boxed{12}. ки Rate the last step. [INST] [/INST]",
    "good bad + - + - 0 1 2 3 4 5 6 7 8 9 ки ки ки \n\n\n\n \n\n\n\n\n\n She buys 9 more.\n\nSo 12 + 9.\n",
]


def byte_level(
    template: str | None = CHATML,
    *,
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    added: tuple[str, ...] = (),
    bos: str | None = None,
    eos: str = "<|im_end|>",
    add_prefix_space: bool = False,
    add_bos: bool = False,
) -> Any:
    """Byte-level BPE, as Qwen's, Llama 3's and GPT's are. ``added``: added tokens, not special."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if add_prefix_space:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(CORPUS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, pad_token=special[0], bos_token=bos, chat_template=template
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.add_tokens(list(added))
    return _beginning(tokenizer) if add_bos else tokenizer


CJK = [
    "今天天气很好。我们去公园玩吧；好的。\n\n第二段，答案是42。",
    "こんにちは世界。カタカナ、ひらがな。",
    "안녕하세요 세계",
]


def across_characters(
    template: str | None = CHATML, *, size: int = 300, normalizer: Any = None, added: tuple[str, ...] = ()
) -> Any:
    """Byte-level BPE whose tokens end one character and begin the next, as GPT-2's do in Chinese.

    Args:
        size: of the vocabulary; below 260 each token is a byte.
    """
    core = Tokenizer(models.BPE())
    if normalizer is not None:
        core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CJK, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=special[-1], pad_token=special[0], chat_template=template
    )
    tokenizer.add_tokens(list(added))
    return tokenizer


def sentencepiece_like(template: str | None = None, *, prepend: bool = True, add_bos: bool = False) -> Any:
    """BPE over "▁" with byte fallback and a space in front of every text, as Mistral's and Llama 2's."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    # As in Mistral's, line breaks are bytes.
    lines = [" ".join(text.split()) for text in CORPUS]
    learner.train_from_iterator(lines * 4, trainers.BpeTrainer(vocab_size=330, show_progress=False))
    learnt = learner.get_vocab()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    entries = ["<unk>", "<s>", "</s>", *bytes_, *sorted(learnt, key=learnt.__getitem__)]
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    core = Tokenizer(
        models.BPE(
            vocab={entry: index for index, entry in enumerate(entries)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if prepend:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    return _beginning(tokenizer) if add_bos else tokenizer


def _beginning(tokenizer: Any) -> Any:
    """Put the beginning-of-sequence token in front of every text."""
    bos = tokenizer.bos_token
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer
