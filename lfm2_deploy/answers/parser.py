class AnswerParser:
    def __init__(self, *, tools=None, starts_in_reasoning=False, choice=0):
        self.text = ""
        self.reasoning = ""
        self.tool_calls = ()
        self.choice = choice

    def push(self, text):
        from lfm2_deploy.answers.events import TextDelta

        self.text += text
        return [TextDelta(text, choice=self.choice)]

    def flush(self):
        return []


def markers(tokenizer):
    return frozenset()
