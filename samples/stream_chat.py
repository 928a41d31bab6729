"""Stream one answer of a chat: python samples/stream_chat.py BUNDLE "Who goes there?"."""

import sys

import lfm2_deploy

bundle, question = sys.argv[1:]
model = lfm2_deploy.load(bundle)
messages = [{"role": "user", "content": question}]
for chunk in model.stream(messages, max_new_tokens=100, seed=1):
    print(chunk.text, end="", flush=True)
print()
