"""The names of ImageNet's classes."""

from functools import cache

TORCHVISIONS = {134: "crane bird", 639: "maillot tank suit"}  # where torchvision's names are not WordNet's


@cache
def imagenet_names(count: int) -> tuple[tuple[str, ...], ...]:
    """For each class of a network with so many: the words of its WordNet synset, the most common first, all of them as
    one text, and its WordNet id. They are those of the subset of ImageNet that timm knows by the count: 1000 classes,
    or one of those with 11 or 21 thousand. Empty for any other count."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return ()
    info = ImageNetInfo(subset)
    names = []
    for index, wnid in enumerate(info.label_names()):
        text = info.label_name_to_description(wnid)
        extra = [TORCHVISIONS[index]] if count == 1000 and index in TORCHVISIONS else []
        names.append((*(word.strip() for word in text.split(",")), text, *extra, wnid))
    return tuple(names)
