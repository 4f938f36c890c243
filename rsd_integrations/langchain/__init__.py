"""RSD as a LangChain chat model.

::

from rsd_integrations.langchain import ChatRSD

llm = ChatRSD.pocket()
print(llm.invoke("Ava has 12 marbles. She buys 9 more. How many has she?").content)
"""

from rsd_integrations.langchain.chat_model import ChatRSD

__all__ = ["ChatRSD"]
