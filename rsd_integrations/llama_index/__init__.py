"""RSD as a LlamaIndex LLM.

::

    from rsd_integrations.llama_index import RSDLLM

    llm = RSDLLM.pocket()
    print(llm.complete("Ava has 12 marbles. She buys 9 more. How many marbles does Ava have now?").text)
"""

from rsd_integrations.adapters.extras import require

require("llama_index.core", "llamaindex")

from rsd_integrations.llama_index.events import (  # noqa: E402
    RSDStepAcceptedEvent,
    RSDStepEvent,
    RSDStepRejectedEvent,
    RSDWorkflowEvent,
)
from rsd_integrations.llama_index.llm import RSDLLM  # noqa: E402

__all__ = ["RSDLLM", "RSDStepAcceptedEvent", "RSDStepEvent", "RSDStepRejectedEvent", "RSDWorkflowEvent"]
