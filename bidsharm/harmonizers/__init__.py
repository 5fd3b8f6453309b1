"""The methods, behind one contract: a card, ``fit`` and ``harmonize``."""
