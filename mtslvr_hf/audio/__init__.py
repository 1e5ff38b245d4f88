"""One audio file to samples: decoding, resampling, reading ahead."""
