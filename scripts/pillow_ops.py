"""The operations of recipes as Pillow 11.3 has them (docs/spec/recipes.md), for scripts that compare mixd with it."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


def hue(image, turns):
    """torchvision's adjust_hue for PIL images."""
    h, s, v = image.convert("HSV").split()
    shifted = (np.asarray(h).astype(np.int32) + int(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(shifted.astype(np.uint8)), s, v)).convert("RGB")


def posterize(image, bits):
    """Keeps the upper bits; 0 of them is black."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def solarize_add(image, add):
    """timm's."""
    return image.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3)


def operate(image, name, argument=None, warp="nearest", fill=(0, 0, 0)):
    """The image after one operation, named as `mixd plan` and `mixd replay` name it."""

    def warped(matrix):
        return image.transform(image.size, Image.AFFINE, matrix, FILTERS[warp], fillcolor=tuple(fill))

    operations = {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "grayscale": lambda: Image.merge("RGB", [image.convert("L")] * 3),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(argument),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(argument),
        "saturation": lambda: ImageEnhance.Color(image).enhance(argument),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(argument),
        "hue": lambda: hue(image, argument),
        "posterize": lambda: posterize(image, argument),
        "solarize": lambda: ImageOps.solarize(image, argument),
        "solarize_add": lambda: solarize_add(image, argument),
        "gaussian_blur": lambda: image.filter(ImageFilter.GaussianBlur(argument)),
        "rotate": lambda: image.rotate(argument, FILTERS[warp], fillcolor=tuple(fill)),
        "shear_x": lambda: warped((1, argument, 0, 0, 1, 0)),
        "shear_y": lambda: warped((1, 0, 0, argument, 1, 0)),
        "translate_x": lambda: warped((1, 0, argument, 0, 1, 0)),
        "translate_y": lambda: warped((1, 0, 0, 0, 1, argument)),
    }
    return operations[name]()
