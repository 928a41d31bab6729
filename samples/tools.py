"""Let the model call a function: python samples/tools.py BUNDLE "How warm is it in Rome?"."""

import json
import sys

from lfm2_deploy import Engine


def get_weather(city: str) -> dict:
    return {"city": city, "celsius": {"Paris": 16, "Rome": 24}[city]}


FUNCTIONS = {"get_weather": get_weather}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"name": "get_weather", "description": "Now, in a city.", "parameters": PARAMETERS}]

if len(sys.argv) != 3:
    sys.exit(__doc__)
bundle, question = sys.argv[1:]
messages = [{"role": "user", "content": question}]
with Engine.load(bundle) as engine:
    # "auto" leaves it to the model; "required" holds it to calls that fit the schema.
    answer = engine.generate(messages, tools=TOOLS, tool_choice="required", max_new_tokens=100)
    if not answer.tool_calls:
        sys.exit(f"the call was cut ({answer.finish_reason}): {answer.cut_call}")
    call = answer.tool_calls[0]  # a model may ask for several; one is enough here
    result = json.dumps(FUNCTIONS[call.name](**json.loads(call.arguments)))
    print(f"{call.name}({call.arguments}) gives {result}")
    function = {"name": call.name, "arguments": call.arguments}
    messages += [
        {"role": "assistant", "tool_calls": [{"id": call.id, "function": function}]},
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    print(engine.generate(messages, tools=TOOLS, tool_choice="none", max_new_tokens=100).text)
