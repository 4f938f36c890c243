"""RSD as a LangChain chat model.

::

    from rsd_integrations.langchain import ChatRSD

    llm = ChatRSD.pocket()
    print(llm.invoke("Ava has 12 marbles. She buys 9 more. How many marbles does Ava have now?").text)
"""

from rsd_integrations.adapters.extras import require

require("langchain_core", "langchain")

from rsd_integrations.langchain.chat_model import ChatRSD  # noqa: E402

__all__ = ["ChatRSD"]
