"""Faults of how a base set begins and grows: new last layers, networks that join, folders looked at."""

from tests.mutants.entries import Mutant


def _in(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/training/test_{file}.py::test_{name}" for name in names)


MUTANTS = [
    Mutant(
        "training/new-head-forgets-the-centre",
        "training/new_head.py",
        "torch.from_numpy(bias - weight @ centre)",
        "torch.from_numpy(bias)",
        _in("new_head", "the_backbone_stays_and_the_last_layer_tells_the_new_classes_apart"),
        "the last layer leans to some classes",
    ),
    Mutant(
        "training/new-head-is-fitted-to-the-test",
        "training/new_head.py",
        "features, labels = _features(classifier, layer, splits.train, device), splits.train.labels",
        "features, labels = _features(classifier, layer, splits.test, device), splits.test.labels",
        _in("new_head", "the_fitted_layer_is_the_minimum_of_the_penalised_loss"),
        "the accuracy written into the manifest is that of images the layer was fitted to",
    ),
    Mutant(
        "training/another-split-goes-on",
        "training/train.py",
        "        if ours != before.get(field):\n",
        "        if False:\n",
        _in("new_head", "a_recipe_goes_on_from_it_but_not_with_another_split"),
        "images that the base set was trained on are tested",
    ),
    Mutant(
        "training/a-newcomer-leads",
        "training/joining.py",
        "added.name: 0.0}",
        "added.name: 1.0}",
        _in("joining", "the_ingredients_there_stay_and_the_new_one_comes_last"),
        "default coefficients sum to 2, and the base set is refused",
    ),
    Mutant(
        "training/a-newcomer-stays-after-an-error",
        "training/bases.py",
        "        _remove_other(base.path, after, kept=before)\n        path.unlink(missing_ok=True)\n",
        "",
        _in("joining", "a_full_disk_leaves_the_base_set_as_it_was"),
        "a file that no manifest names is left in the base set",
    ),
    Mutant(
        "training/radii-of-any-size",
        "training/recipe.py",
        "for threat in default_threats(height, width)}",
        "for threat in default_threats(32, 32)}",
        _in("radii", "an_evaluation_without_threat_models_has_all_at_the_usual_radii"),
        "photographs are attacked with the radii of thumbnails",
    ),
    Mutant(
        "training/draft-of-large-radii",
        "training/choosing.py",
        "_rounded(threat.eps / 2)",
        "_rounded(threat.eps)",
        _in("drafting", "the_input_size_follows_the_images"),
        "the recipe costs more clean accuracy than it says",
    ),
    Mutant(
        "training/draft-enlarges",
        "training/choosing.py",
        "(size for size in SIDES if size <= short)",
        "(size for size in SIDES)",
        _in("drafting", "the_input_size_follows_the_images"),
        "small images are enlarged, which takes longer and shows nothing more",
    ),
    Mutant(
        "training/draft-counts-the-unreadable",
        "training/contents.py",
        "readable[name] = files.subset(good)",
        "readable[name] = files",
        _in("drafting", "what_cannot_be_read_is_named_and_not_counted"),
        "a class of broken files counts as enough",
    ),
    Mutant(
        "training/draft-trains-one-longer",
        "training/choosing.py",
        '"nominal": linf + short',
        '"nominal": linf',
        _in("drafting", "more_images_are_seen_less_often_in_larger_batches"),
        "nominal was trained less than the others and looks worse",
    ),
]
