"""Base models: where they come from, how they are cut and loaded, how text becomes token ids."""
