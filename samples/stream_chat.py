"""Stream one answer of a chat: python samples/stream_chat.py BUNDLE "Who goes there?"."""

import sys

from lfm2_deploy import Engine, Finished, TextDelta

if len(sys.argv) != 3:
    sys.exit(__doc__)
bundle, question = sys.argv[1:]
with Engine.load(bundle) as engine:
    messages = [{"role": "user", "content": question}]
    for event in engine.stream(messages, max_new_tokens=100, seed=1):
        match event:
            case TextDelta(text):
                print(text, end="", flush=True)
            case Finished(answer):
                print(f"\n[{answer.usage.completion_tokens} tokens, {answer.finish_reason}]")
