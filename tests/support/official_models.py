"""The official models and the configurations that have their variables."""

from vatt.config.presets import as_classifier, preset

OFFICIAL_MODELS = {
    "tx_fac_base-base-small": preset("bbs"),
    "tx_fac_medium-base-small": preset("mbs"),
    "tx_fac_large-base-small": preset("lbs"),
    "tx_fac_base-sptbase-small": preset("bbs-spectrogram"),
    "ut_fac_base": preset("ma-base"),
    "ut_fac_medium": preset("ma-medium"),
    "ft_vit_base_k400": as_classifier(preset("bbs"), "video", 400),
    "ft_vit_medium_k400": as_classifier(preset("mbs"), "video", 400),
    "ft_vit_large_k400": as_classifier(preset("lbs"), "video", 400),
    "ft_vit_medium_k400_from_ut": as_classifier(preset("ma-medium"), "video", 400),
    "ft_wat_base_audioset": as_classifier(preset("bbs"), "audio", 527),
    "ft_wat_medium_audioset_from_ut": as_classifier(preset("ma-medium"), "audio", 527),
    "ft_spt_base_audioset": as_classifier(preset("bbs-spectrogram"), "audio", 527),
}
