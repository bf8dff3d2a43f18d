"""Local only: nothing travels."""


def test_nothing_is_averaged(make) -> None:
    made = make("local-only", norms="local", local_lora=1)
    assert made.shared == set()
    trained = (
        made.lora("lora_A") | made.lora("lora_B") | made.names("class_tokens", "experts.", "local_lora.", "norms.")
    )
    own = set(made.model.norms.origins.values())
    assert made.local == trained | (made.names("output_layers.") - own)
