"""Models that make vectors, of any kind: ours and those of others, behind one interface.

Imports `models`, `preprocess` and below. Start with `encoder.Encoder` and `loading.load_encoder`;
for fine-tuning, with `open_model.OpenModel`.
"""
