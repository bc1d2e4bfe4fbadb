"""Answers to rows by a finished model: a folder's, or an ONNX file's without torch."""
