"use strict";
if (page.sheets.layers) charts.follow(() => charts.growth(page.sheets.layers.rows));
