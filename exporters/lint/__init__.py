"""Rules about graphs: what a target refuses, runs elsewhere or gets silently wrong.

    graph.py       a graph as rules see it; read_onnx.py and read_ir.py make one
    kernels.py     tables of kernels (tables/*.json), and which one a node would get
    makers.py      where a value comes from
    infer.py       types and shapes
    rule.py        what a rule is; a target's set of rules is a value
    rules/         one file a target

Everything here is read from files. Nothing is run, and no rule may say that something runs.
"""
