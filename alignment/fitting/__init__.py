"""From a recipe to a run folder for what TRL trains: demonstrations (:mod:`sft`) and rewards (:mod:`reward`).

Importing these modules silences TRL's reports to Hugging Face, unless the environment asks for them.
"""

from alignment.telemetry import silence_telemetry

silence_telemetry()
