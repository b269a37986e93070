"""Speed of the encoder beside other encoders a user could pick: `python -m benchmarks`.

Everything runs in one process and in turns on the same texts (udhr.jsonl: articles of the Universal
Declaration of Human Rights in 24 languages, public domain), so that ratios hold where absolute figures depend
on the machine.
"""
