"""SGLang: what it loads, and how it is started."""
