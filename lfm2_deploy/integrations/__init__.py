"""How other libraries' classes and commands read what this package makes. Imported by nothing here.

`optimum` is for optimum-onnx (extra `optimum`); optimum-intel needs nothing of this (extra
`optimum-intel` brings it).
"""
