"""LangChain with a tool: python samples/langchain_client.py URL "How warm is it in Rome?".

URL is where `lfm2-deploy serve BUNDLE` listens, such as http://127.0.0.1:8080.
"""

import sys
from typing import Literal

import httpx
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather now, in a city."""
    return f"{ {'Paris': 16, 'Rome': 24}[city] } degrees"


if len(sys.argv) != 3:
    sys.exit(__doc__)
url, question = sys.argv[1:]
model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, max_tokens=100)
messages = [HumanMessage(question)]
# "auto", the default, leaves it to the model; "required" holds it to a call.
calling = chat.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
messages.append(calling.invoke(messages))
for call in messages[-1].tool_calls:
    messages.append(get_weather.invoke(call))
    print(f"{call['name']}({call['args']}) gives {messages[-1].content}")
for chunk in chat.stream(messages):
    print(chunk.content, end="", flush=True)
print()
