"""The blind comparison of two methods' synthetic images by people: Table 4 of the paper."""
