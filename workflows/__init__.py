"""The Nipype graphs. Installed as ``bidsharm.workflows``; every ``init_*_wf`` works inside another pipeline."""
