"""Sound: files, spectra, mixtures, metrics. Knows no model."""
