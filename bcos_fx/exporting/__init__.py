"""Networks and their explanations as graphs of ordinary operations: files for ONNX runtimes and ``torch.export``."""
