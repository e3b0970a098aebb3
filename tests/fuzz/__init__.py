"""Whatever comes in, nothing exits, hangs or grows: fuzzing of the decoders, and of the running daemon."""
