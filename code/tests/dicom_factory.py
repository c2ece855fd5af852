"""Small DICOM slides for tests: one file per level, as scanners export them."""

from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from tests.slide_factory import tiles_of


def write_dicom(folder: Path, names: list[str], image: np.ndarray, mpp: float = 0.25, tile: int = 128) -> str:
    """Write RGB uint8 as the DICOM files `names`, each at half the resolution of the one before; its series UID."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    folder.mkdir(parents=True, exist_ok=True)
    for level, name in enumerate(names):
        if level:
            image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
        dataset = _level(image, mpp * 2**level, tile, original=level == 0)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.save_as(folder / name, enforce_file_format=True)
    return series


def _level(image: np.ndarray, mpp: float, tile: int, original: bool) -> Dataset:
    height, width = image.shape[:2]
    frames = [imagecodecs.jpeg_encode(part, level=90) for part in tiles_of(image, tile)]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.SOPClassUID, dataset.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.ImageType = [
        "ORIGINAL" if original else "DERIVED",
        "PRIMARY",
        "VOLUME",
        "NONE" if original else "RESAMPLED",
    ]
    dataset.Modality, dataset.DimensionOrganizationType = "SM", "TILED_FULL"
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = width, height
    dataset.Rows = dataset.Columns = tile
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.NumberOfFrames, dataset.TotalPixelMatrixFocalPlanes = len(frames), 1
    measures, shared, optical = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    optical.OpticalPathIdentifier = "0"
    dataset.OpticalPathSequence = [optical]
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True
    return dataset
