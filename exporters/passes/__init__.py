"""One rewrite a file. A pass edits a `Draft` in place and leaves its outputs' values alone.

`clean_up` takes the tracer's habits out; each `lower_*` replaces one operator of the
"lfm2" domain by what ONNX Runtime's CPU provider has for it.
"""
