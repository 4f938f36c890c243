"""The trio's shared tokenizer: byte-level, whole words of the task as single tokens.

The vocabulary is the 256 bytes, the numbers 0..99 and the words of the task;
``ignore_merges`` looks a whole word up and falls back to bytes, so every text
round-trips while no id is spent on halves of words. A blank line is cut off
before anything else: it is always one token of its own, and a step has the
same ids in the draft, the target and the reward model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from rsd_integrations.pocket.task import SEPARATOR, generate

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_LENGTH = 1024

# A word or sign takes the space before it and, before a number, the one after it:
# so one token stands for a number wherever it occurs.
SPLIT = (
    r"\n\n|\n| ?\\boxed\{| ?\p{L}+(?: (?=\p{N}))?"
    r"| ?[^\s\p{L}\p{N}]+(?: (?=\p{N}))?|\p{N}{1,2}|\s"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def build_tokenizer(problems: int = 20_000, seed: int = 0) -> Any:
    """Collect the task's words and wrap the result as a ``PreTrainedTokenizerFast``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    cutter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = _words(cutter, _texts(problems, seed))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = [str(number) for number in range(100)]
    entries = dict.fromkeys([*SPECIALS, *alphabet, *numbers, *words])
    vocab = {entry: index for index, entry in enumerate(entries)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    core.pre_tokenizer = cutter
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a saved model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def _texts(problems: int, seed: int) -> Iterable[str]:
    yield "user\nassistant\nsystem\nWork out 1 + 2, 3 - 4, 5 * 6, 8 / 2.\n\n"
    for problem in islice(generate(seed), problems):
        yield problem.question + SEPARATOR + problem.solution


def _words(cutter: Any, texts: Iterable[str]) -> list[str]:
    """Pieces the splitter cuts the texts into, commonest first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in cutter.pre_tokenize_str(text))
    return sorted(counts, key=lambda piece: (-counts[piece], piece))
