"""TensorRT: from a program to a serialized engine, and running one.

Shared by the backend and the engine format of that name. Nothing here imports a package
of NVIDIA's until an engine is to be built or run.
"""
