"""Learn image segmentation by building a U-Net: the code behind the six notebooks.

The modules beside this file are the lesson, read in this order: ``pictures``, ``masks``,
``carvana``, ``recipe``, ``seeds``, ``dataset``, ``model``, ``losses``, ``muon``, ``device``,
``metrics``, ``training``, ``plots``. They need nothing of the sub-packages behind: ``support``,
``store`` (runs on disk), ``deploy`` (formats, prediction), ``fetch`` (data sets).
"""

from importlib import import_module

__version__ = "0.7.0"

# Where each public name lives; imported when it is first asked for (PEP 562), as PyTorch is slow.
_HOMES = {
    "pictures": "DataError load_image",
    "masks": "load_coverage load_mask rle_decode rle_encode",
    "carvana": "split_by_group",
    "recipe": "Recipe",
    "dataset": "AUGMENTATIONS CarvanaDataset make_loader to_tensor",
    "model": "NETWORKS DecoderBlock EncoderBlock UNet count_parameters",
    "muon": "Muon orthogonal",
    "losses": "LOSSES bce_dice_loss bce_loss soft_dice_loss",
    "device": "pick_device",
    "metrics": "boundary_iou dataset_logits dice evaluate iou",
    "training": "OPTIMIZERS SCHEDULES TrainingError",
    "plots": "overlay show_images",
    "support.folders": "REPOSITORY cache_dir data_dir models_dir runs_dir",
    "support.cache": "decode_once",
    "support.profile": "own_data profile",
    "support.errors": "ModelFileError RunError",
    "support.exercises": "Exercise reveal",
    "store.fit": "fit",
    "store.runs": "find_runs load_run",
    "store.compare": "best_model clean_runs compare_runs",
    "store.lr_find": "lr_find",
    "store.figures": "LiveFigure plot_history plot_lr_find show_predictions",
    "store.model_file": "load_model save_model",
    "fetch.samples": "check find_samples",
    "fetch.tables": "read_metadata read_rles",
    "fetch.kaggle": "download",
    "fetch.subset": "write_subset",
    "deploy.manifest": "FILES",
    "deploy.export": "export_all export_onnx export_program export_torchscript quantize_int8",
    "deploy.predict": "Predictor enlarge load_predictor",
    "deploy.images": "image_files",
    "deploy.submission": "write_masks write_submission",
    "deploy.score": "score",
    "deploy.page": "serve_page write_page",
    "deploy.compare": "TOLERANCE benchmark cold_start compare parity predictors_in",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'unetlib' has no attribute {name!r}")
    value = getattr(import_module(f"unetlib.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
