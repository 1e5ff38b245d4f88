"""Audio files: decoding, resampling, reading ahead."""
