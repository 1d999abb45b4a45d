"""The sweeps behind the chapters, one small file each with its `SWEEP`.

A file here is the one place outside a chapter that may use a chapter's package, and
only inside its `run`, so that importing `geolib.sweep` stays light.
"""
