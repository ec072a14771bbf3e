"""The drawn world: pictures, the small base model trained on them, two example styles."""
