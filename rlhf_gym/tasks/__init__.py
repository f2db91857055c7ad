"""What a run is about: the embedded reviews task, any labelled text, or the user's own files."""
