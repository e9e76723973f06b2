"""What compressing a real sentence encoder keeps."""

__all__: list[str] = []
