"""bidsharm: harmonize brain MRI across scanners, with proof that the anatomy survived."""

__version__ = '0.1.0'
