"""Text to token ids without surprises: plain text stays plain, chat markup comes from templates alone.

Duck-typed on transformers tokenizers (5.16 and later, fast or slow); imports neither torch nor
transformers. Two dangers are dealt with here, for all models:

* Text that spells a control token ("<|im_end|>", a PRM's "<extra_0>") must not become that token.
  Each occurrence is cut after its first character and the parts are encoded apart: the text that the
  model reads is the same, the token cannot arise.
* SentencePiece-like tokenizers put a space in front of every text. A continuation must not get one.
"""

from __future__ import annotations

from rsd_integrations.encoding.chat import (
    chat_template_text,
    control_tokens,
    message_text,
    render_chat,
)
from rsd_integrations.encoding.plain import encode_markup, encode_opening, encode_plain, token_id

__all__ = [
    "chat_template_text",
    "control_tokens",
    "encode_markup",
    "encode_opening",
    "encode_plain",
    "message_text",
    "render_chat",
    "token_id",
]
